// The view of the locks over time: a row for each instance, and on it one bar after the other.

import { el, reconcile, text, attribute } from "./dom.js";
import { askFiltered, filtered, filterForm, LOCK_COLUMNS, LOCK_FILTERS } from "./filters.js";
import { paged, pager, toolbar } from "./frame.js";
import { between, missed, remember } from "./memory.js";
import { about, curl, lockQuery, now } from "./service.js";
import { moment, parts, utc } from "./words.js";

/** What can be seen at once, in s: its name and the distance of its lines. */
const SPANS = { 120: ["2 minutes", 20], 600: ["10 minutes", 60], 3600: ["1 hour", 600], 86400: ["1 day", 14400] };
const SIZES = { offered: [25, 50, 100], usual: 50 };
const ORDER = { sizes: SIZES, sort: "serviceInstanceId", direction: "ASC" };
const NOW_AT = 0.4; // where now begins on its way, and where the picture moves on
const MOVE_AT = 0.75;
const HUES = 12;

let ui = null;
let address = new URLSearchParams();
let entries = [];
let total = 0;
let asked = ""; // the query whose instances these are
let instances = new Set();
let from = 0; // ms, where the picture begins

function element(go) {
  const form = filterForm(LOCK_FILTERS, go);
  const span = el("select", { "aria-label": "Time shown", onchange: () => go({ span: span.value }) },
    ...Object.entries(SPANS).map(([value, [name]]) => el("option", { value }, name)));
  const tools = toolbar({ word: "lock", columns: LOCK_COLUMNS, shown: () => entries, curl: () => curl.lockQuery(query(address)) });
  tools.element.querySelector(".tools").prepend(span);
  const axis = el("div", { class: "axis", "aria-hidden": "true" });
  const line = el("div", { class: "now", "aria-hidden": "true" }, el("span", {}, "now"));
  const rows = el("ul", { class: "rows", tabindex: "-1", "aria-label": "Instances and their locks" });
  const empty = el("p", { class: "empty", hidden: true }, "No lock to be seen here.");
  const pages = pager(SIZES, go);
  ui = { form, span, tools, axis, line, rows, empty, pages };
  entries = [];
  instances = new Set();
  from = 0;
  return el("section", { "aria-labelledby": "title" },
    el("h1", { id: "title" }, "Timeline"),
    el("p", { class: "lead" }, "Each instance has one lock at a time: on a row, bars never overlap. ",
      el("span", { class: "key" }, el("span", { class: "sample" }), "managed "), el("span", { class: "key" }, el("span", { class: "sample temporary" }), "temporary, of a job "), el("span", { class: "key" }, el("span", { class: "sample ended" }), "ended")),
    form.element, tools.element,
    el("div", { class: "sheet timeline" }, el("div", { class: "over", "aria-hidden": "true" }, axis, line), rows, empty), pages.element);
}

function query(address) {
  return { ...filtered(LOCK_FILTERS, address), pagination: { ...paged(address, ORDER, about.maxPageSize), sortField: ORDER.sort, direction: ORDER.direction } };
}

async function load(address) {
  const { pagination } = query(address);
  const answer = await askFiltered(LOCK_FILTERS, address, lockQuery, { pagination });
  const body = query(address);
  await remember(answer.entries);
  if (JSON.stringify(body) !== asked) {
    asked = JSON.stringify(body);
    instances = new Set();
  }
  for (const it of answer.entries) instances.add(it.serviceInstanceId);
  await missed(answer.entries, instances);
  return answer;
}

function show(answer) {
  entries = answer?.entries ?? [];
  total = answer?.count ?? 0;
  if (!answer) instances = new Set();
  draw(now());
  ui.tools.show(answer ? total : null);
  ui.empty.hidden = !answer || ui.rows.children.length > 0;
}

function seconds() {
  const wanted = address.get("span");
  return Object.hasOwn(SPANS, wanted ?? "") ? Number(wanted) : 120;
}

/** Where a moment lies in the picture, in percent. */
function place(time) {
  return ((time - from) / (seconds() * 1000)) * 100;
}

function draw(present) {
  const length = seconds() * 1000;
  const step = SPANS[seconds()][1] * 1000;
  if (present < from || present > from + MOVE_AT * length) {
    from = Math.floor((present - NOW_AT * length) / step) * step;
  }
  const lines = [];
  for (let time = Math.ceil(from / step) * step; time <= from + length; time += step) lines.push(time);
  reconcile(ui.axis, lines, (it) => it, () => el("span", { class: "tick" }), (tick, time) => {
    tick.style.left = `${place(time)}%`;
    attribute(tick, "class", time + 0.06 * length > from + length ? "tick last" : "tick");
    text(tick, utc(new Date(time).toISOString().slice(0, 19), present));
  });
  const rows = new Map();
  for (const lock of between(instances, from, from + length)) {
    const instance = lock.entry.serviceInstanceId;
    rows.set(instance, [...(rows.get(instance) ?? []), lock]);
  }
  const sorted = [...rows].sort(([a], [b]) => (a < b ? -1 : 1));
  reconcile(ui.rows, sorted, ([instance]) => instance, row, (element, [, locks]) => {
    reconcile(element.lastChild, locks.sort((a, b) => a.entry.id - b.entry.id), (it) => it.entry.id, bar, (its, lock) => drawBar(its, lock, present));
  });
  drawLine(present);
  ui.pages.show(query(address).pagination, total);
  if (ui.span.value !== String(seconds())) ui.span.value = String(seconds());
}

function row([instance]) {
  const { system, service, version } = parts(instance);
  return el("li", {},
    el("span", { class: "instance" }, el("strong", {}, system), el("span", { class: "quiet" }, ` ${service} · ${version}`)),
    el("span", { class: "track" }));
}

function bar({ entry }) {
  const element = el("span", { class: entry.temporary ? "lock temporary" : "lock" },
    el("span", { class: "owner" }, entry.owner), el("span", { class: "unseen" }));
  element.style.setProperty("--hue", String(hue(entry.owner)));
  return element;
}

function drawBar(element, lock, present) {
  const { entry, start, end } = lock;
  const begin = Math.max(0, start === null ? 0 : place(start));
  const stop = Math.min(100, place(end));
  const left = `${begin.toFixed(2)}%`;
  const width = `${Math.max(0.3, stop - begin).toFixed(2)}%`;
  if (element.style.left !== left) element.style.left = left;
  if (element.style.width !== width) element.style.width = width;
  const ended = end <= present;
  element.classList.toggle("ended", ended);
  element.classList.toggle("before", start === null || place(start) < 0);
  element.classList.toggle("beyond", place(end) > 100);
  const early = ended && moment(entry.expiresAt) > end;
  const until = ended ? `${early ? "given back" : "expired"} at ${utc(new Date(end).toISOString().slice(0, 19), present)} UTC` : `until ${utc(entry.expiresAt, present)} UTC`;
  text(element.lastChild, ` ${until}`);
  attribute(element, "title", `${entry.owner}, ${until}${entry.temporary ? ", temporary" : ""} (#${entry.id})`);
}

function drawLine(present) {
  ui.line.style.left = `${place(present).toFixed(2)}%`;
}

function tick(present) {
  draw(present);
}

/** One of a few colours, always the same for an owner; red is for what goes wrong. */
function hue(owner) {
  let sum = 0;
  for (const letter of owner) sum = (sum * 31 + letter.codePointAt(0)) % 9973;
  return 35 + ((sum % HUES) * 290) / HUES;
}

export const timeline = {
  title: "Timeline",
  element,
  arrive(its) {
    address = its;
    from = 0;
    ui.form.arrive(its);
  },
  load,
  show,
  tick,
};
