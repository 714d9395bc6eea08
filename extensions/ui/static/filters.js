// Filters: their form, and the query that the address asks for. The service's filters are exact.
// Here a part of a value stands for every value that contains it, of those that the page has seen.

import { el, foldButton, labelled, nameInput, reconcile, setText } from "./dom.js";
import { queryLocks, serviceInfo } from "./service.js";

const MAX_VALUES = 5000; // of one key
const LOOK_UP = 1000; // entries at most, to find the values that contain a part
const LOOK_UP_AFTER = 6000; // ms

export const WHOLE_ID = /^.{36}/;

/**
 * What `List` needs to know of locks. A filter has a `name` in the query. If a part of a value will
 * do, `key` is where entries have it, and `whole` matches what is not a part. `more` folds it away.
 */
export const LOCKS = {
	noun: "lock",
	ask: queryLocks,
	size: 50,
	filters: [
		{ name: "serviceInstanceIds", label: "Instance", key: "serviceInstanceId", whole: /\|.*\|/ },
		{ name: "owners", label: "Owner", key: "owner" },
		{
			name: "orchestrationJobIds",
			label: "Job",
			key: "orchestrationJobId",
			whole: WHOLE_ID,
			more: true,
		},
		{ name: "ids", label: "Lock", more: true },
		{ name: "expiresAfter", label: "Expires after (UTC)", kind: "time", more: true },
		{ name: "expiresBefore", label: "Expires before (UTC)", kind: "time", more: true },
	],
};

const seenValues = new Map(); // by key
let lastLookUp = { for: "", at: -Infinity };

function splitWords(value) {
	return (value ?? "")
		.trim()
		.split(/\s*,\s*/)
		.filter(Boolean);
}

function seen(key) {
	return [...(seenValues.get(key) ?? [])];
}

export function rememberValues(filters, entries) {
	for (const { key } of filters.filter((it) => it.key)) {
		const values = seenValues.get(key) ?? new Set();
		seenValues.set(key, values);
		for (const entry of entries) if (entry[key]) values.add(entry[key]);
		for (const value of values) {
			if (values.size <= MAX_VALUES) break;
			values.delete(value);
		}
	}
}

/** Forget everything: another requester may not be allowed to see it. */
export function forgetValues() {
	seenValues.clear();
	lastLookUp = { for: "", at: -Infinity };
}

export function suggest(list, values) {
	const offered = [...new Set(values)].sort().slice(0, 100);
	reconcile(
		list,
		offered,
		(it) => it,
		(value) => el("option", { value }),
	);
}

/** A name without what the service ignores when it compares names. */
function normalize(name) {
	return name.replace(/[\s_-]/g, "").toLowerCase();
}

function isWhole({ key, whole }, word) {
	if (!key || whole?.test(word)) return true;
	return seen(key).some((it) => normalize(it) === normalize(word));
}

function matchingValues(filter, word) {
	if (isWhole(filter, word)) return [word];
	const found = seen(filter.key).filter((it) => normalize(it).includes(normalize(word)));
	if (filter.whole) return found;
	// The word may be a name that the page has not seen; or the service says what is wrong with it.
	const mayBeName = /^[A-Za-z][\w-]*$/.test(word);
	return mayBeName || !found.length ? [...found, word] : found;
}

export function filterQuery(filters, address) {
	const query = {};
	for (const filter of filters) {
		const value = address.get(filter.name);
		const words = splitWords(value);
		if (!words.length) continue;
		const isList = filter.kind !== "time" && filter.kind !== "choice";
		const values = words.flatMap((word) => matchingValues(filter, word));
		query[filter.name] = isList ? [...new Set(values)] : value;
	}
	return query;
}

/** `rest` is the part of the query that is not a filter. */
export async function queryFiltered(filters, address, ask, rest) {
	const partial = filters.filter((filter) =>
		splitWords(address.get(filter.name)).some((word) => !isWhole(filter, word)),
	);
	if (partial.length) await lookUpValues(filters, partial, address, ask);
	const query = filterQuery(filters, address);
	if (matchesNothing(query)) return { entries: [], count: 0 };
	const answer = await ask({ ...query, ...rest });
	rememberValues(filters, answer.entries);
	return answer;
}

/** Whether a filter matches no value. (An empty list would be no filter to the service.) */
export function matchesNothing(query) {
	return Object.values(query).some((it) => !it.length);
}

async function lookUpValues(filters, partial, address, ask) {
	const query = filterQuery(
		filters.filter((it) => !partial.includes(it)),
		address,
	);
	const key = JSON.stringify([filters.map((it) => it.name), query]);
	if (lastLookUp.for === key && performance.now() - lastLookUp.at < LOOK_UP_AFTER) return;
	const pagination = { page: 0, size: Math.min(LOOK_UP, serviceInfo.maxPageSize) };
	rememberValues(filters, (await ask({ ...query, pagination })).entries);
	lastLookUp = { for: key, at: performance.now() };
}

export function filterForm(filters, navigate) {
	const fields = filters.map((filter) => ({ filter, ...createField(filter) }));
	const apply = () => {
		const changes = { page: null };
		for (const { filter, read } of fields) changes[filter.name] = read();
		navigate(changes);
	};
	const clearAll = () => {
		for (const { write } of fields) write("");
		apply();
	};
	const usual = fields.filter((it) => !it.filter.more).map((it) => it.element);
	const others = fields.filter((it) => it.filter.more).map((it) => it.element);
	const fold = foldButton("Filters");
	const clear = el("button.clear", { onclick: clearAll }, "Clear filters");
	const more = el("details.more", el("summary", "More filters"), el("div.fields", ...others));
	const form = el(
		"form.filters",
		{ role: "search", "aria-label": "Filters" },
		fold,
		el("div.fields", ...usual, clear),
		more,
	);
	form.addEventListener("change", apply);
	form.addEventListener("submit", (event) => {
		event.preventDefault();
		apply();
	});
	return {
		element: form,
		show(address) {
			let used = 0;
			for (const { filter, write, element } of fields) {
				const value = address.get(filter.name) ?? "";
				if (!element.contains(document.activeElement) || !value) write(value);
				if (value) used += 1;
				if (value && filter.more) more.open = true;
			}
			clear.hidden = !used;
			setText(fold, used ? `Filters (${used})` : "Filters");
		},
	};
}

/** The field of a filter: its `element`, and how to `read` and `write` its value in the address. */
function createField(filter) {
	if (filter.kind === "checks") return checksField(filter);
	if (filter.kind === "choice") return choiceField(filter);
	return filter.kind === "time" ? timeField(filter) : textField(filter);
}

function checksField({ name, label, options }) {
	const boxes = options.map(([value, title]) =>
		el("input", { type: "checkbox", name, value, "aria-label": title }),
	);
	const labels = options.map(([, title], index) => el("label", boxes[index], " ", title));
	return {
		element: el("fieldset.field.checks", el("legend", label), ...labels),
		read: () =>
			boxes
				.filter((it) => it.checked)
				.map((it) => it.value)
				.join(","),
		write: (value) => {
			const chosen = splitWords(value.toUpperCase());
			for (const box of boxes) box.checked = chosen.includes(box.value);
		},
	};
}

function choiceField({ name, label, options }) {
	const choices = options.map(([value, title]) => el("option", { value }, title));
	return inputField(label, el("select", { name }, ...choices));
}

function timeField({ name, label }) {
	const input = el("input", { name, type: "datetime-local", step: "1" });
	const { element, read, write } = inputField(label, input);
	return {
		element,
		read: () => read() && `${read().padEnd(19, ":00")}Z`, // browsers leave out 0 seconds
		write: (value) => write(value.replace("Z", "")),
	};
}

function textField({ name, label, key }) {
	const placeholder = key ? "all of it, or a part" : "number, …";
	const offered = el("datalist", { id: `seen-${name}` });
	const offer = () => {
		const before = input.value.slice(0, input.value.lastIndexOf(",") + 1);
		suggest(
			offered,
			seen(key).map((it) => before + it),
		);
	};
	const offers = key ? { list: offered.id, onfocus: offer, oninput: offer } : {};
	const input = nameInput({ name, placeholder, ...offers });
	return inputField(label, input, offered);
}

function inputField(label, input, ...more) {
	return {
		element: labelled(label, input, ...more),
		read: () => input.value.trim(),
		write(value) {
			// Only if it changes: the caret stays, and so does a time that is half typed.
			if (input.value !== value) input.value = value;
		},
	};
}
