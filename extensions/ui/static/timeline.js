// The view of the locks over time: a row for each instance, and on it one bar after the other.

import { el, reconcile, setAttribute, setText } from "./dom.js";
import { LOCKS } from "./filters.js";
import { formatUtc, parseTime, splitInstance } from "./format.js";
import { List } from "./list.js";
import { locksBetween, noticeRemoved, rememberLocks } from "./memory.js";
import { serviceTime } from "./service.js";

/** The times that the picture may show, in s, and the seconds between two lines. */
const SPANS = {
	120: { name: "2 minutes", step: 20 },
	600: { name: "10 minutes", step: 60 },
	3600: { name: "1 hour", step: 600 },
	86400: { name: "1 day", step: 14400 },
};
const KIND = {
	...LOCKS,
	none: "Nothing is locked.",
	sizes: [25, 50, 100],
	sort: "serviceInstanceId",
	direction: "ASC",
};
const NOW_AT = 0.4; // of the picture's width: where now is when the picture has moved on
const MOVE_AT = 0.75; // where now is when the picture moves on
const LABEL_WIDTH = 0.06; // of the picture: the last line has no label if less is left
const HUES = 12;

let list;
let spanChoice;
let axis;
let nowLine;
let rows;
let shownQuery = ""; // `instances` are those that have been in its answers
let instances = new Set();
let from = 0; // ms, where the picture begins

function create(navigate) {
	const options = Object.entries(SPANS).map(([value, { name }]) => el("option", { value }, name));
	const showSpan = () => navigate({ span: spanChoice.value });
	spanChoice = el("select", { "aria-label": "Time shown", onchange: showSpan }, ...options);
	list = new List(KIND, navigate, spanChoice);
	axis = el("div.axis");
	nowLine = el("div.now", el("span", "now"));
	rows = el("ul.rows", { tabindex: "-1", "aria-label": "Instances and their locks" });
	instances = new Set();
	return [
		el(
			"p.lead",
			"An instance has one lock at a time, so the bars of a row never overlap. ",
			key("span.sample", "managed"),
			key("span.sample.temporary", "temporary: a job holds it"),
			key("span.sample.ended", "ended"),
		),
		list.form.element,
		list.toolbar,
		el(
			"div.sheet.timeline",
			el("div.over", { "aria-hidden": "true" }, axis, nowLine),
			rows,
			list.empty,
		),
		list.pager.element,
	];
}

function key(sample, words) {
	return el("span.key", el(sample), words);
}

function setAddress(address) {
	from = 0;
	list.setAddress(address);
}

async function load() {
	const { address } = list;
	const answer = await list.load();
	await rememberLocks(answer.entries);
	if (address !== list.address) return answer; // it is not shown
	const query = JSON.stringify(list.query);
	if (query !== shownQuery) {
		shownQuery = query;
		instances = new Set();
	}
	for (const { serviceInstanceId } of answer.entries) instances.add(serviceInstanceId);
	await noticeRemoved(answer.entries, instances);
	return answer;
}

function show(answer) {
	if (!answer) instances = new Set();
	list.show(answer);
	tick(serviceTime());
	if (rows.children.length) list.empty.hidden = true;
}

function shownSeconds() {
	const wanted = list.address.get("span") ?? "";
	return Object.hasOwn(SPANS, wanted) ? Number(wanted) : 120;
}

/** Where a time is in the picture, in percent. */
function place(time) {
	return ((time - from) / (shownSeconds() * 1000)) * 100;
}

function tick(now) {
	const length = shownSeconds() * 1000;
	const step = SPANS[shownSeconds()].step * 1000;
	if (now < from || now > from + MOVE_AT * length) {
		from = Math.floor((now - NOW_AT * length) / step) * step;
	}
	drawAxis(from + length, step, now);
	drawRows(from + length, now);
	nowLine.style.left = `${place(now).toFixed(2)}%`;

	if (spanChoice.value !== String(shownSeconds())) spanChoice.value = String(shownSeconds());
}

function drawAxis(until, step, now) {
	const times = [];
	for (let time = Math.ceil(from / step) * step; time <= until; time += step) times.push(time);
	const createLine = () => el("span.tick");
	reconcile(
		axis,
		times,
		(time) => time,
		createLine,
		(line, time) => {
			line.style.left = `${place(time)}%`;
			line.classList.toggle("last", time + LABEL_WIDTH * (until - from) > until);
			setText(line, formatUtc(time, now));
		},
	);
}

function drawRows(until, now) {
	const locksOf = new Map(); // by instance
	for (const lock of locksBetween(instances, from, until)) {
		const instance = lock.entry.serviceInstanceId;
		locksOf.set(instance, [...(locksOf.get(instance) ?? []), lock]);
	}
	const sorted = [...locksOf].sort(([a], [b]) => (a < b ? -1 : 1));
	reconcile(
		rows,
		sorted,
		([instance]) => instance,
		createRow,
		(row, [, locks]) => {
			locks.sort((a, b) => a.entry.id - b.entry.id);
			const draw = (bar, lock) => drawBar(bar, lock, now);
			reconcile(row.lastChild, locks, (lock) => lock.entry.id, createBar, draw);
		},
	);
}

function createRow([instance]) {
	const { system, service, version } = splitInstance(instance);
	const rest = el("span.quiet", ` ${service} · ${version}`);
	return el("li", el("span.instance", el("strong", system), rest), el("span.track"));
}

function createBar({ entry }) {
	const bar = el(
		"span",
		{ class: entry.temporary ? "lock temporary" : "lock" },
		el("span.owner", entry.owner),
		el("span.unseen"),
	);
	bar.style.setProperty("--hue", String(hueOf(entry.owner)));
	return bar;
}

function drawBar(bar, { entry, start, end }, now) {
	const startsBefore = start === null || place(start) < 0;
	const begin = startsBefore ? 0 : place(start);
	const left = `${begin.toFixed(2)}%`;
	const width = `${Math.max(0.3, Math.min(100, place(end)) - begin).toFixed(2)}%`;
	if (bar.style.left !== left) bar.style.left = left;
	if (bar.style.width !== width) bar.style.width = width;
	bar.classList.toggle("ended", end <= now);
	bar.classList.toggle("before", startsBefore);
	bar.classList.toggle("beyond", place(end) > 100);
	const words = describeEnd(entry, end, now);
	setText(bar.lastChild, ` ${words}`);
	const kind = entry.temporary ? ", temporary" : "";
	setAttribute(bar, "title", `${entry.owner}, ${words}${kind} (#${entry.id})`);
}

function describeEnd(entry, end, now) {
	const time = `${formatUtc(end, now)} UTC`;
	if (end > now) return `until ${time}`;
	return end < parseTime(entry.expiresAt) ? `removed at ${time}` : `expired at ${time}`;
}

/** One of a few colours, always the same for an owner. None is red, which stands for errors. */
function hueOf(owner) {
	let sum = 0;
	for (const letter of owner) sum = (sum * 31 + letter.codePointAt(0)) % 9973;
	return 35 + ((sum % HUES) * 290) / HUES;
}

export const timeline = { title: "Timeline", create, setAddress, load, show, tick };
