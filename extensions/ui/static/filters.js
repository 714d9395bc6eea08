// Filters: their form, and the query that the address asks for. Those of the service are exact, so a
// part of a value stands for the values that hold it, of those that the page has seen.

import { attribute, el, folder, reconcile, text } from "./dom.js";
import { about } from "./service.js";

const AT_MOST = 5000; // values of a kind
const LOOKED_AT = 1000; // entries at most, to find the values that hold a part
const LOOK_EVERY = 6000; // ms

const seen = new Map(); // by the key of the entries: its values
let looked = { for: "", at: -Infinity };

/** The words between commas. */
export const words = (value) => value.split(",").map((it) => it.trim()).filter(Boolean);

/** Remember the values of these entries. */
export function see(filters, entries) {
  for (const { of } of filters) {
    if (!of) continue;
    const values = seen.get(of) ?? new Set();
    seen.set(of, values);
    for (const entry of entries) if (entry[of]) values.add(entry[of]);
    for (const value of values) {
      if (values.size <= AT_MOST) break;
      values.delete(value);
    }
  }
}

/** Nothing of it is for the next who asks. */
export function unsee() {
  seen.clear();
  looked = { for: "", at: -Infinity };
}

/** Offer these in a list. */
export function suggest(list, values) {
  const offered = [...new Set(values)].sort().slice(0, 100);
  reconcile(list, offered, (it) => it, (value) => el("option", { value }), () => {});
}

/** As the service compares names, however they are spelt. */
const plain = (name) => name.replace(/[\s_-]/g, "").toLowerCase();

/** Whether a filter's word is a whole value, not a part of one. */
function isWhole({ of, whole }, word) {
  return !of || whole?.test(word) || [...(seen.get(of) ?? [])].some((it) => plain(it) === plain(word));
}

/** What the service is to look for. A word that may be a name that the page has not seen is one more. */
function meant(filter, word) {
  if (isWhole(filter, word)) return [word];
  const found = [...(seen.get(filter.of) ?? [])].filter((it) => plain(it).includes(plain(word)));
  return filter.whole || (found.length && !/^[A-Za-z][\w-]*$/.test(word)) ? found : [...found, word];
}

/** The part of a query that the filters of the address ask for. */
export function filtered(filters, address) {
  const body = {};
  for (const filter of filters) {
    const value = address.get(filter.name);
    if (!value) continue;
    const exact = filter.kind === "time" || filter.kind === "choice";
    body[filter.name] = exact ? value : [...new Set(words(value).flatMap((it) => meant(filter, it)))];
  }
  return body;
}

/** Ask for what the filters ask for; `ask` is told the query, of which `rest` is a part. */
export async function askFiltered(filters, address, ask, rest) {
  const unclear = filters.filter((it) => words(address.get(it.name) ?? "").some((word) => !isWhole(it, word)));
  if (unclear.length) await look(filters, unclear, address, ask);
  const body = filtered(filters, address);
  const nothing = unclear.some(({ name }) => !body[name].length && words(address.get(name)).length);
  const answer = nothing ? { entries: [], count: 0 } : await ask({ ...body, ...rest });
  see(filters, answer.entries);
  return answer;
}

/** See the newest entries, whatever they have where the filter is unclear. */
async function look(filters, unclear, address, ask) {
  const body = filtered(filters.filter((it) => !unclear.includes(it)), address);
  const key = JSON.stringify([filters.map((it) => it.name), body]);
  if (looked.for === key && performance.now() - looked.at < LOOK_EVERY) return;
  const pagination = { page: 0, size: Math.min(LOOKED_AT, about.maxPageSize) };
  see(filters, (await ask({ ...body, pagination })).entries);
  looked = { for: key, at: performance.now() };
}

export const LOCK_FILTERS = [
  { name: "serviceInstanceIds", label: "Instance", hint: "System|service|1.0.0, or a part", of: "serviceInstanceId", whole: /\|.*\|/ },
  { name: "owners", label: "Owner", hint: "name, or a part", of: "owner" },
  { name: "orchestrationJobIds", label: "Job", hint: "id, or a part", of: "orchestrationJobId", whole: /^.{36}/, more: true },
  { name: "ids", label: "Lock", hint: "number, …", more: true },
  { name: "expiresAfter", label: "Expires after (UTC)", kind: "time", more: true },
  { name: "expiresBefore", label: "Expires before (UTC)", kind: "time", more: true },
];

export const LOCK_COLUMNS = [
  "id", "orchestrationJobId", "serviceInstanceId", "owner", "expiresAt", "temporary",
];

/** The form of the filters. `arrive` puts into it what the address holds. */
export function filterForm(filters, go) {
  const fields = filters.map((filter) => ({ filter, ...field(filter) }));
  const apply = () => {
    const changes = { page: null };
    for (const { filter, read } of fields) changes[filter.name] = read();
    go(changes);
  };
  const usual = fields.filter((it) => !it.filter.more).map((it) => it.element);
  const others = fields.filter((it) => it.filter.more).map((it) => it.element);
  const more = others.length
    ? el("details", { class: "more" }, el("summary", {}, "More filters"), el("div", { class: "fields" }, ...others))
    : null;
  const fold = folder("Filters");
  const clear = el("button", { class: "clear", onclick: () => {
    for (const { write } of fields) write("");
    apply();
  } }, "Clear filters");
  const form = el("form", { class: "filters", role: "search", "aria-label": "Filters" }, fold,
    el("div", { class: "fields" }, ...usual, clear), more);
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  return {
    element: form,
    arrive(address) {
      let used = 0;
      for (const { filter, write, element } of fields) {
        const value = address.get(filter.name) ?? "";
        if (!element.contains(document.activeElement) || !value) write(value);
        used += value ? 1 : 0;
        if (value && filter.more) more.open = true;
      }
      clear.hidden = !used;
      text(fold, used ? `Filters (${used})` : "Filters");
    },
  };
}

function field({ name, label, kind, options, hint, of }) {
  if (kind === "checks") {
    const boxes = options.map(([value, title]) => el("input", { type: "checkbox", name, value, "aria-label": title }));
    const element = el("fieldset", { class: "field checks" }, el("legend", {}, label),
      ...options.map(([, title], index) => el("label", {}, boxes[index], " ", title)));
    return {
      element,
      read: () => boxes.filter((it) => it.checked).map((it) => it.value).join(","),
      write: (value) => boxes.forEach((it) => (it.checked = words(value.toUpperCase()).includes(it.value))),
    };
  }
  let input;
  if (kind === "choice") {
    input = el("select", { name }, ...options.map(([value, title]) => el("option", { value }, title)));
  } else if (kind === "time") {
    input = el("input", { name, type: "datetime-local", step: "1" });
  } else {
    input = el("input", { name, type: "text", autocomplete: "off", spellcheck: "false", placeholder: hint ?? "" });
  }
  const offered = of ? el("datalist", { id: `seen-${name}` }) : null;
  if (of) {
    attribute(input, "list", offered.id);
    const offer = () => {
      const before = input.value.slice(0, input.value.lastIndexOf(",") + 1);
      suggest(offered, [...(seen.get(of) ?? [])].map((it) => before + it));
    };
    for (const event of ["focus", "input"]) input.addEventListener(event, offer);
  }
  return {
    element: el("label", { class: "field" }, el("span", {}, label), input, offered),
    read: () => (kind === "time" && input.value ? `${input.value.length === 16 ? `${input.value}:00` : input.value}Z` : input.value.trim()),
    write: (value) => {
      const shown = kind === "time" ? value.replace("Z", "") : value;
      if (input.value !== shown) input.value = shown;
    },
  };
}

