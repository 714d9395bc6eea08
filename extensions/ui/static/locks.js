// The view of the locks: who holds what and for how long.

import { announce, el, focusRow, reconcile, setText } from "./dom.js";
import { LOCKS } from "./filters.js";
import {
	formatCount,
	formatDuration,
	formatLocal,
	formatUtc,
	parseTime,
	splitInstance,
	toDateTime,
} from "./format.js";
import { List } from "./list.js";
import { createLockForm, TIMES } from "./lockform.js";
import { rememberLocks, shareLeft } from "./memory.js";
import {
	asCurl,
	Refusal,
	removeLocks,
	removeLocksAsCurl,
	renewLocks,
	serviceTime,
} from "./service.js";
import { cell, createTable, dialog, form, segments, showCurl } from "./widgets.js";

const KIND = {
	...LOCKS,
	none: "Nothing is locked. Lock an instance above, and watch its time run out here.",
	sizes: [25, 50, 100, 200],
	sort: "id",
	direction: "DESC",
};
const COLUMNS = [
	{ title: "Select", hidden: true },
	{ title: "Lock", sort: "id", first: "DESC" },
	{ title: "Instance", sort: "serviceInstanceId" },
	{ title: "Owner", sort: "owner" },
	{ title: "Kind" },
	{ title: "Job" },
	{ title: "Expires (UTC)", sort: "expiresAt" },
	{ title: "Time left" },
	{ title: "Extend or remove", hidden: true },
];
const WHY_NOT_REMOVED =
	"Temporary: a job holds it. It is free when the job ends or the lock expires.";
const SOON = 10; // s; a lock that expires within them is marked

let list;
let lockForm;
let table;
let selection;
let refreshPage;
const selected = new Map(); // by id

function create(navigate, refresh) {
	refreshPage = refresh;
	list = new List(KIND, navigate);
	lockForm = createLockForm(navigate, refreshAndPoint);
	table = createTable("locks", COLUMNS, navigate);
	selection = el(
		"div.selection",
		{ hidden: true },
		el("p", { role: "status" }),
		el("button.danger", { onclick: removeSelected }, "Remove them"),
		el("button", { onclick: selectNone }, "Select none"),
	);
	selected.clear();
	return [
		lockForm.element,
		list.form.element,
		list.toolbar,
		selection,
		el("div.sheet", table.element, list.empty),
		list.pager.element,
	];
}

/** Refresh, and show the lock that was in the way of a create. */
async function refreshAndPoint() {
	await refreshPage();
	draw(serviceTime()); // a newer refresh may have replaced this one
	table.body.querySelector(".pointed")?.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

async function load() {
	const answer = await list.load();
	await rememberLocks(answer.entries);
	return answer;
}

function show(answer) {
	list.show(answer);
	table.showOrder(list.pagination);
	for (const entry of list.entries) if (selected.has(entry.id)) selected.set(entry.id, entry);
	draw(serviceTime());
	lockForm.suggest(list.entries);
}

function draw(now) {
	const drawEntry = (row, entry) => drawRow(row, entry, now);
	reconcile(table.body, list.entries, (it) => it.id, createRow, drawEntry);
	drawSelection();
}

function createRow(entry) {
	const { id, serviceInstanceId, owner, temporary, orchestrationJobId: jobId } = entry;
	const { system, service, version } = splitInstance(serviceInstanceId);
	const select = () => {
		if (box.checked) selected.set(id, entry);
		else selected.delete(id);
		drawSelection();
	};
	const box = el("input", {
		type: "checkbox",
		"aria-label": `Select ${serviceInstanceId}`,
		disabled: temporary,
		title: temporary && WHY_NOT_REMOVED,
		onchange: select,
	});
	const remove = el(
		"button.remove",
		{
			"aria-label": `Remove the lock on ${serviceInstanceId}`,
			"aria-disabled": temporary && "true",
			title: temporary && WHY_NOT_REMOVED,
			onclick: () => (temporary ? announce(WHY_NOT_REMOVED) : confirmRemoval([entry])),
		},
		"Remove",
	);
	const actions = [remove];
	if (!temporary) {
		const label = `Extend the lock on ${serviceInstanceId}`;
		actions.unshift(
			el("button.extend", { "aria-label": label, onclick: () => askExtension(entry) }, "Extend"),
		);
	}
	const job = jobId
		? el(
				"a",
				{
					href: `?view=history&ids=${jobId}&open=${jobId}`,
					title: jobId,
				},
				jobId.slice(0, 8),
			)
		: el("span.quiet", "–");
	return el(
		"tr",
		{ role: "row" },
		cell("Select", box),
		cell("Lock", el("span.number", `#${id}`)),
		cell(
			"Instance",
			el("span.instance", el("strong", system), el("span.quiet", `${service} · ${version}`)),
			el("span.pointer", "holds it"),
		),
		cell("Owner", owner),
		cell("Kind", temporary ? el("span.tag.temporary", "temporary") : el("span.tag", "managed")),
		cell("Job", job),
		cell("Expires", el("time")),
		cell(
			"Time left",
			el("span.left", el("span.words"), el("span.bar", { "aria-hidden": "true" }, el("span"))),
		),
		cell("", el("span.actions", ...actions)),
	);
}

function drawRow(element, { id, expiresAt }, now) {
	const end = parseTime(expiresAt);
	const seconds = Math.ceil((end - now) / 1000);
	const time = element.querySelector("time");
	setText(time, formatUtc(end, now));
	if (time.dateTime !== expiresAt) {
		time.dateTime = expiresAt;
		time.title = formatLocal(expiresAt);
	}
	setText(element.querySelector(".words"), formatDuration(seconds));
	const bar = element.querySelector(".bar > span");
	const scale = `scaleX(${shareLeft(id, now + 1000).toFixed(4)})`; // it takes a second to get there
	if (bar.style.transform !== scale) bar.style.transform = scale;
	element.classList.toggle("soon", seconds <= SOON);
	element.classList.toggle("pointed", id === lockForm.lockInTheWay);
	const box = element.querySelector("input");
	if (box.checked !== selected.has(id)) box.checked = selected.has(id);
}

function tick(now) {
	lockForm.tick(now);
	for (const [id, entry] of selected) if (parseTime(entry.expiresAt) <= now) selected.delete(id);
	if (list.entries.length) list.keep((entry) => parseTime(entry.expiresAt) > now);
	draw(now);
}

function drawSelection() {
	if (!selected.size) {
		if (selection.contains(document.activeElement)) focusRow(table.body, 0);
		selection.hidden = true;
		return;
	}
	selection.hidden = false;
	setText(selection.firstChild, `${formatCount(selected.size, "lock")} selected`);
}

function removeSelected() {
	confirmRemoval([...selected.values()]);
}

function selectNone() {
	selected.clear();
	draw(serviceTime());
}

function confirmRemoval(locks) {
	const count = formatCount(locks.length, "lock");
	const instancesOf = new Map(); // by owner
	for (const { owner, serviceInstanceId } of locks) {
		instancesOf.set(owner, [...(instancesOf.get(owner) ?? []), serviceInstanceId]);
	}
	const remove = async () => {
		setText(failure, "");
		for (const [owner, instances] of instancesOf) {
			try {
				await removeLocks(owner, instances);
			} catch (error) {
				if (!(error instanceof Refusal)) throw error;
				setText(failure, `Not all locks of ${owner} have been removed: ${error.message}`);
				return refreshPage();
			}
			instancesOf.delete(owner);
			for (const lock of locks) if (lock.owner === owner) selected.delete(lock.id);
		}
		box.close();
		announce(`Removed ${count}.`);
		return refreshPage();
	};
	const showCommand = () => {
		const commands = [...instancesOf].map(([owner, instances]) =>
			removeLocksAsCurl(owner, instances),
		);
		showCurl("Remove as a command", commands.join("\n"));
	};
	const failure = el("p.refused", { role: "alert" });
	const keep = el("button", { onclick: () => box.close() }, "Keep");
	const lines = locks.map(({ serviceInstanceId, owner }) =>
		el("li", el("strong", serviceInstanceId), ` held by ${owner}`),
	);
	const box = dialog(
		"Remove for good?",
		el("p", "The owners lose these locks at once:"),
		el("ul.list", ...lines),
		failure,
		el(
			"div.buttons",
			el("button", { onclick: showCommand }, "Show as curl"),
			keep,
			el("button.danger", { onclick: remove }, `Remove ${count}`),
		),
	);
	box.showModal();
	keep.focus();
}

function askExtension(entry) {
	const { id, serviceInstanceId, owner } = entry;
	const request = () => {
		const { expiresAt } = list.entries.find((it) => it.id === id) ?? entry; // its present end
		const end = parseTime(expiresAt) + Number(times.querySelector(":checked").value) * 1000;
		return { locks: [{ id, serviceInstanceId, owner, expiresAt: toDateTime(end) }] };
	};
	const submit = async () => {
		try {
			const [lock] = (await renewLocks(request())).entries;
			box.close();
			const end = formatUtc(parseTime(lock.expiresAt), serviceTime());
			announce(`${serviceInstanceId} is locked for ${owner} until ${end} UTC.`);
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			return `The lock has not been extended: ${error.message}`;
		} finally {
			refreshPage();
		}
	};
	const times = segments("by", "by", TIMES);
	const box = dialog(
		"Extend the lock",
		el("p", el("strong", serviceInstanceId), ` held by ${owner}`),
		form([times], "Extend", submit),
	);
	const showCommand = () => showCurl("Extend as a command", renewLocks(request(), asCurl));
	box
		.querySelector(".buttons")
		.prepend(
			el("button", { onclick: showCommand }, "Show as curl"),
			el("button", { onclick: () => box.close() }, "Close"),
		);
	box.showModal();
}

const setAddress = (address) => list.setAddress(address);

export const locks = { title: "Locks", create, setAddress, load, show, tick };
