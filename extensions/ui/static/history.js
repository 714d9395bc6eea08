// The view of the history: which jobs ran, how long they waited and ran, and how they ended.

import { el, reconcile, setAttribute, setText } from "./dom.js";
import { matchesNothing, rememberValues, WHOLE_ID } from "./filters.js";
import { formatDuration, formatLocal, formatUtc, parseTime, STATUSES } from "./format.js";
import { List } from "./list.js";
import { createPlots, drawPlots } from "./plots.js";
import { queryJobs, queryLocks, Refusal, serviceInfo, serviceTime } from "./service.js";
import { cell, createTable } from "./widgets.js";

const KIND = {
	noun: "job",
	none: "No job has been recorded yet.",
	ask: queryJobs,
	sizes: [25, 50, 100, 200],
	size: 25,
	sort: "createdAt",
	direction: "DESC",
	filters: [
		{
			name: "statuses",
			label: "Status",
			kind: "checks",
			options: Object.entries(STATUSES).map(([status, { word }]) => [status, word]),
		},
		{
			name: "type",
			label: "Type",
			kind: "choice",
			options: [
				["", "any"],
				["PULL", "pull"],
				["PUSH", "push"],
			],
		},
		{ name: "requesterSystems", label: "Requester", key: "requesterSystem" },
		{ name: "targetSystems", label: "Target", key: "targetSystem", more: true },
		{ name: "serviceDefinitions", label: "Service", key: "serviceDefinition" },
		{ name: "ids", label: "Job", key: "id", whole: WHOLE_ID, more: true },
		{
			name: "subscriptionIds",
			label: "Subscription",
			key: "subscriptionId",
			whole: WHOLE_ID,
			more: true,
		},
	],
};
const COLUMNS = [
	{ title: "Status" },
	{ title: "Type" },
	{ title: "Requester → target" },
	{ title: "Service" },
	{ title: "Created (UTC)", sort: "createdAt", first: "DESC" },
	{ title: "Waited", by: "by start", sort: "startedAt", first: "DESC" },
	{ title: "Ran", by: "by end", sort: "finishedAt", first: "DESC" },
	{ title: "Message" },
];
const MAX_PLOTTED = 1000; // jobs
const UPDATE_PLOTS_AFTER = 10_000; // ms
const NOTHING_PLOTTED = { query: "", at: -Infinity, jobs: [], count: 0 };

let list;
let table;
let plots;
let navigate;
let heldLocks = []; // of the open jobs
let plotted = NOTHING_PLOTTED;

function create(navigateTo) {
	navigate = navigateTo;
	list = new List(KIND, navigate);
	table = createTable("jobs", COLUMNS, navigate);
	plots = createPlots();
	return [
		list.form.element,
		plots.element,
		list.toolbar,
		el("div.sheet", table.element, list.empty),
		list.pager.element,
	];
}

function setAddress(address) {
	list.setAddress(address);
	drawRows(serviceTime());
}

function openJobs() {
	return (list.address.get("open") ?? "").split(",").filter(Boolean);
}

async function load() {
	const answer = await list.load();
	await Promise.all([loadOpenJobs(answer), loadPlots()]);
	return answer;
}

/** An open job stays on the page, even if newer jobs have taken its place. */
async function loadOpenJobs(answer) {
	const open = openJobs();
	if (!open.length) return;
	const missing = open.filter((id) => !answer.entries.some((it) => it.id === id));
	try {
		const [jobs, held] = await Promise.all([
			missing.length ? queryJobs({ ids: missing }) : { entries: [] },
			queryLocks({ orchestrationJobIds: open }),
		]);
		answer.entries.push(...jobs.entries);
		heldLocks = held.entries;
	} catch (error) {
		if (!(error instanceof Refusal) || error.unavailable) throw error;
		heldLocks = []; // the address holds an invalid id, or the requester may not see locks
	}
}

async function loadPlots() {
	const { filters } = list;
	const query = JSON.stringify(filters);
	if (query === plotted.query && performance.now() - plotted.at < UPDATE_PLOTS_AFTER) return;
	const size = Math.min(MAX_PLOTTED, serviceInfo.maxPageSize);
	const pagination = { page: 0, size, sortField: "createdAt", direction: "DESC" };
	const answer = matchesNothing(filters)
		? { entries: [], count: 0 }
		: await queryJobs({ ...filters, pagination });
	rememberValues(KIND.filters, answer.entries);
	plotted = { query, at: performance.now(), jobs: answer.entries, count: answer.count };
}

function show(answer) {
	const now = serviceTime();
	list.show(answer);
	if (!answer) plotted = NOTHING_PLOTTED;
	table.showOrder(list.pagination);
	drawRows(now);
	drawPlots(plots, plotted, now);
}

function drawRows(now) {
	const open = openJobs();
	const rows = list.entries.flatMap((job) =>
		open.includes(job.id) ? [{ job }, { job, steps: true }] : [{ job }],
	);
	reconcile(
		table.body,
		rows,
		({ job, steps }) => (steps ? `${job.id} steps` : job.id),
		({ job, steps }) => (steps ? el("tr.steps", { role: "row" }, cell("")) : createRow(job)),
		(element, { job, steps }) =>
			steps ? drawSteps(element, job, now) : drawRow(element, job, open.includes(job.id), now),
	);
}

function createRow(job) {
	const toggle = () => {
		const open = openJobs();
		const others = open.filter((id) => id !== job.id);
		const wanted = others.length < open.length ? others : [...open, job.id];
		navigate({ open: wanted.join(",") }, { replace: true });
	};
	const opener = el(
		"button.open",
		{ onclick: toggle },
		el("span.mark", { "aria-hidden": "true" }),
		el("span.words"),
	);
	const target =
		job.targetSystem === job.requesterSystem ? [] : [el("span.arrow", " → "), job.targetSystem];
	return el(
		"tr",
		{ role: "row" },
		cell("Status", opener),
		cell("Type", (job.type ?? "").toLowerCase()),
		cell("Requester → target", el("span", job.requesterSystem, ...target)),
		cell("Service", job.serviceDefinition),
		cell("Created", el("time", { datetime: job.createdAt, title: formatLocal(job.createdAt) })),
		cell("Waited", el("span.waited")),
		cell("Ran", el("span.ran")),
		cell("Message", el("span.message")),
	);
}

function drawRow(element, job, isOpen, now) {
	const { mark, word } = STATUSES[job.status] ?? { mark: "?", word: job.status };
	setAttribute(element, "class", `is-${job.status}${isOpen ? " opened" : ""}`);
	setAttribute(element.querySelector(".open"), "aria-expanded", String(isOpen));
	setText(element.querySelector(".mark"), mark);
	setText(element.querySelector(".words"), word);
	setText(element.querySelector("time"), formatUtc(parseTime(job.createdAt), now));
	setText(element.querySelector(".waited"), timeBetween(job.createdAt, job.startedAt, now));
	setText(element.querySelector(".ran"), timeBetween(job.startedAt, job.finishedAt, now));
	setText(element.querySelector(".message"), job.message ?? "");
}

function timeBetween(start, end, now) {
	if (!start) return "–";
	if (!end) return `${formatDuration((now - parseTime(start)) / 1000)} so far`;
	return formatDuration((parseTime(end) - parseTime(start)) / 1000);
}

/** What happened to a job: the time of each step, or none if it goes on; what; and how. */
function stepsOf(job, now) {
	const waited = timeBetween(job.createdAt, job.startedAt, now);
	const ran = timeBetween(job.startedAt, job.finishedAt, now);
	const origin = job.subscriptionId
		? `subscription ${job.subscriptionId}`
		: `a request of ${job.requesterSystem}`;
	const steps = [[job.createdAt, "was created", `by ${origin}`]];
	steps.push(
		job.startedAt ? [job.startedAt, "was started", `after ${waited}`] : ["", "waits", waited],
	);
	if (job.finishedAt) {
		steps.push([job.finishedAt, job.status === "ERROR" ? "failed" : "was done", `after ${ran}`]);
	} else if (job.startedAt) {
		steps.push(["", "runs", ran]);
	}
	return steps;
}

function drawSteps(element, job, now) {
	const place = element.firstChild;
	place.colSpan = COLUMNS.length;
	const steps = stepsOf(job, now);
	const held = heldLocks.filter((it) => it.orchestrationJobId === job.id);
	const key = JSON.stringify([job, held.map((it) => it.id)]);
	if (place.dataset.key !== key) {
		place.dataset.key = key;
		place.replaceChildren(
			el("p.quiet", "Job ", el("code", job.id), ` for ${job.targetSystem}`),
			el("ol", ...steps.map(([time, what]) => createStep(time, what, now))),
			...(job.message ? [el("p", "Its message: ", el("q", job.message))] : []),
			...(held.length
				? [el("p", "It holds:"), el("ul.held", ...held.map(createHeldLock))]
				: [el("p.quiet", "It holds no lock now.")]),
		);
	}
	place.querySelectorAll(".how").forEach((it, index) => setText(it, ` ${steps[index][2]}`));
	place.querySelectorAll(".left").forEach((it, index) => {
		const seconds = Math.ceil((parseTime(held[index].expiresAt) - now) / 1000);
		setText(it, `${formatDuration(seconds)} left`);
	});
}

function createStep(time, what, now) {
	const when = time
		? el("time", { datetime: time, title: formatLocal(time) }, formatUtc(parseTime(time), now))
		: el("span", "now");
	return el("li", when, ` it ${what}`, el("span.how"));
}

function createHeldLock({ id, serviceInstanceId, owner }) {
	const link = el("a", { href: `?view=locks&ids=${id}` }, serviceInstanceId);
	return el("li", link, ` for ${owner}, `, el("span.left"));
}

function tick(now) {
	heldLocks = heldLocks.filter((it) => parseTime(it.expiresAt) > now);
	drawRows(now);
}

export const history = { title: "History", create, setAddress, load, show, tick };
