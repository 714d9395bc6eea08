// Two small plots above the history: how many jobs each minute, and how long they ran.

import { el, setAttribute, setText } from "./dom.js";
import { formatDuration, formatNumber, formatUtc, parseTime, STATUSES } from "./format.js";

const MINUTES = 30;
const MINUTE = 60_000; // ms
const LENGTHS = [0, 1, 2, 4, 8, 16, 32, 64]; // s, where each column begins
const MARK_EVERY = 10; // columns

const ORDER = Object.keys(STATUSES); // from the bottom of a column to its top

export function createPlots() {
	const minutes = createPlot("Jobs per minute", MINUTES, ORDER);
	const lengths = createPlot("How long jobs ran", LENGTHS.length, ["DONE", "ERROR"]);
	lengths.columns.forEach(({ label }, index) => setText(label, describeLength(index)));
	const keys = ORDER.map((status) =>
		el("span.key", el(`span.sample.fill-${status}`), word(status)),
	);
	const legend = el("p.legend", ...keys);
	const element = el("div.plots", minutes.element, lengths.element, legend);
	return { minutes, lengths, element };
}

function word(status) {
	return STATUSES[status].word.toLowerCase();
}

function describeLength(index) {
	const from = LENGTHS[index];
	const until = LENGTHS[index + 1];
	if (until === undefined) return `${from}+ s`;
	return until - from === 1 ? `${from} s` : `${from}–${until - 1}`;
}

function createPlot(title, count, statuses) {
	const columns = Array.from({ length: count }, () => {
		const fills = statuses.map((it) => el(`span.fill-${it}`));
		const label = el("span.label");
		const stack = el("span.stack", ...fills);
		return { fills, label, element: el("span.column", stack, label) };
	});
	const elements = columns.map((it) => it.element);
	const picture = el("div.columns", { role: "img" }, ...elements);
	const top = el("span.top", { "aria-hidden": "true" });
	const note = el("span.quiet");
	const element = el(
		"figure",
		el("figcaption", el("strong", title), " ", note),
		el("div.area", top, picture),
	);
	return { title, columns, picture, top, note, element };
}

/** Fill the plots from `jobs`, the newest of the `count` that match. */
export function drawPlots({ minutes, lengths }, { jobs, count }, now) {
	drawMinutes(minutes, jobs, count, now);
	drawLengths(lengths, jobs);
}

function drawMinutes(plot, jobs, count, now) {
	const created = jobs.map((it) => Math.floor(parseTime(it.createdAt) / MINUTE));
	const thisMinute = Math.floor(now / MINUTE);
	const newest = Math.max(...created);
	// Up to now, or up to the newest job if that is older than a whole plot.
	const last = jobs.length && newest <= thisMinute - MINUTES ? newest : thisMinute;
	const first = last - MINUTES + 1;
	const sums = plot.columns.map(() => [0, 0, 0, 0]);
	jobs.forEach(({ status }, index) => {
		const column = sums[created[index] - first];
		if (column) column[ORDER.indexOf(status)] += 1;
	});
	const isPart = count > jobs.length;
	const oldest = isPart ? Math.min(...created) : -Infinity; // there may be older jobs
	const most = drawColumns(plot, sums);
	const clock = (minute) => formatUtc(minute * MINUTE, now).slice(0, -":00".length);
	plot.columns.forEach(({ element, label }, index) => {
		const isMarked = (MINUTES - 1 - index) % MARK_EVERY === MARK_EVERY - 1;
		element.classList.toggle("unknown", first + index <= oldest);
		setText(label, isMarked || index === MINUTES - 1 ? clock(first + index) : "");
	});
	const part = isPart ? `the newest ${formatNumber(jobs.length)} of ${formatNumber(count)}` : "";
	setText(plot.note, part);
	const byStatus = ORDER.map((it, index) => `${total(sums.map((sum) => sum[index]))} ${word(it)}`);
	describe(plot, [
		`${plot.title}: in the ${MINUTES} minutes until ${clock(last)} UTC ${total(sums.flat())} jobs, ` +
			`${byStatus.join(", ")}; at most ${most} in a minute`,
		part,
	]);
}

function drawLengths(plot, jobs) {
	const ended = jobs.filter((it) => it.startedAt && it.finishedAt);
	const sums = plot.columns.map(() => [0, 0]);
	const lengths = ended.map(({ startedAt, finishedAt, status }) => {
		const length = Math.max(0, (parseTime(finishedAt) - parseTime(startedAt)) / 1000);
		const column = LENGTHS.findLastIndex((from) => from <= length);
		sums[column][status === "ERROR" ? 1 : 0] += 1;
		return length;
	});
	drawColumns(plot, sums);
	lengths.sort((a, b) => a - b);
	const within = (share) => formatDuration(lengths[Math.floor(share * lengths.length)]);
	const note = lengths.length
		? `half within ${within(0.5)}, 95 % within ${within(0.95)}`
		: "none has ended";
	setText(plot.note, note);
	const columns = sums.map((sum, index) => `${describeLength(index)}: ${total(sum)}`);
	describe(plot, [`${plot.title}, in seconds: ${note}`, columns.join(", ")]);
}

function total(numbers) {
	return numbers.reduce((sum, it) => sum + it, 0);
}

/** Set the heights of the columns; return how many jobs the highest has. */
function drawColumns(plot, sums) {
	const most = Math.max(1, ...sums.map(total));
	sums.forEach((column, index) => {
		column.forEach((sum, place) => {
			const height = `${((sum / most) * 100).toFixed(1)}%`;
			const { style } = plot.columns[index].fills[place];
			if (style.height !== height) style.height = height;
		});
	});
	setText(plot.top, String(most));
	return most;
}

function describe(plot, parts) {
	setAttribute(plot.picture, "aria-label", parts.filter(Boolean).join("; "));
}
