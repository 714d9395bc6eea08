// The view of the locks: who holds what and for how long, and the way to lock and to remove.

import { announce, attribute, el, folder, reconcile, refocus, text } from "./dom.js";
import { askFiltered, filtered, filterForm, LOCK_COLUMNS, LOCK_FILTERS, suggest } from "./filters.js";
import { cell, dialog, head, paged, pager, showCurl, toolbar } from "./frame.js";
import { left, remember } from "./memory.js";
import { about, curl, lockCreate, lockQuery, lockRemove, now, Refusal } from "./service.js";
import { convention, local, moment, parts, plural, span, utc, wire } from "./words.js";

const SIZES = { offered: [25, 50, 100, 200], usual: 50 };
const ORDER = { sizes: SIZES, sort: "id", direction: "DESC" };
const COLUMNS = [
  { title: "Select", hidden: true },
  { title: "Lock", sort: "id", first: "DESC" },
  { title: "Instance", sort: "serviceInstanceId" },
  { title: "Owner", sort: "owner" },
  { title: "Kind" },
  { title: "Job" },
  { title: "Expires (UTC)", sort: "expiresAt" },
  { title: "Time left" },
  { title: "Remove", hidden: true },
];
const WHY_NOT = "Temporary: a job holds it, so only the job's end or time frees it.";
const SOON = 10; // s before the end a bar warns

let ui = null;
let address = new URLSearchParams();
let entries = [];
let total = 0;
const selected = new Map(); // by id
let pointed = null; // the lock that stands in the way
let refusal = null; // what it stands in the way of

let refresh = null; // brings the page up to date

function element(go, its) {
  refresh = its;
  const form = filterForm(LOCK_FILTERS, go);
  const tools = toolbar({ word: "lock", columns: LOCK_COLUMNS, shown: () => entries, curl: () => curl.lockQuery(query(address)) });
  const heading = head(COLUMNS, go);
  const body = el("tbody", { role: "rowgroup" });
  const table = el("table", { role: "table", class: "locks", tabindex: "-1", "aria-label": "Locks" }, heading.element, body);
  const empty = el("p", { class: "empty", hidden: true });
  const chosen = el("div", { class: "chosen", hidden: true });
  const pages = pager(SIZES, go);
  ui = { form, tools, heading, body, table, empty, chosen, pages, create: createForm(go) };
  selected.clear();
  entries = [];
  return el("section", { "aria-labelledby": "title" },
    el("h1", { id: "title" }, "Locks"), ui.create.element, form.element, tools.element, chosen,
    el("div", { class: "sheet" }, table, empty), pages.element);
}

function pagination() {
  return paged(address, ORDER, about.maxPageSize);
}

function query(address) {
  return { ...filtered(LOCK_FILTERS, address), pagination: pagination() };
}

async function load(address) {
  const answer = await askFiltered(LOCK_FILTERS, address, lockQuery, { pagination: pagination() });
  await remember(answer.entries);
  return answer;
}

function show(answer) {
  entries = answer?.entries ?? [];
  total = answer?.count ?? 0;
  draw(now());
  ui.tools.show(answer ? total : null);
  ui.empty.hidden = !answer || entries.length > 0;
  const filters = Object.keys(filtered(LOCK_FILTERS, address)).length;
  text(ui.empty, filters ? "No lock matches these filters." : "Nothing is locked. Lock an instance above, and see it run down here.");
  ui.create.suggest(entries);
}

function draw(present) {
  ui.heading.show(pagination());
  reconcile(ui.body, entries, (it) => it.id, row, (element, entry) => update(element, entry, present));
  ui.pages.show(pagination(), total);
  drawChosen();
}

function row(entry) {
  const { system, service, version } = parts(entry.serviceInstanceId);
  const box = el("input", { type: "checkbox", "aria-label": `Select ${entry.serviceInstanceId}` });
  box.addEventListener("change", () => {
    if (box.checked) selected.set(entry.id, entry);
    else selected.delete(entry.id);
    drawChosen();
  });
  const remove = el("button", { class: "remove", "aria-label": `Remove the lock on ${entry.serviceInstanceId}` }, "Remove");
  remove.addEventListener("click", () => (entry.temporary ? announce(WHY_NOT) : confirmRemoval([entry])));
  if (entry.temporary) {
    box.disabled = true;
    for (const it of [box, remove]) it.title = WHY_NOT;
    attribute(remove, "aria-disabled", "true");
  }
  const job = entry.orchestrationJobId
    ? el("a", { href: `?view=history&ids=${encodeURIComponent(entry.orchestrationJobId)}&open=${encodeURIComponent(entry.orchestrationJobId)}`, title: entry.orchestrationJobId }, entry.orchestrationJobId.slice(0, 8))
    : el("span", { class: "quiet" }, "–");
  return el("tr", { role: "row" },
    cell("Select", box),
    cell("Lock", el("span", { class: "number" }, `#${entry.id}`)),
    cell("Instance", el("span", { class: "instance" }, el("strong", {}, system), el("span", { class: "quiet" }, `${service} · ${version}`)), el("span", { class: "pointer" }, "holds it")),
    cell("Owner", entry.owner),
    cell("Kind", el("span", { class: entry.temporary ? "tag temporary" : "tag" }, entry.temporary ? "temporary" : "managed")),
    cell("Job", job),
    cell("Expires", el("time", { datetime: entry.expiresAt, title: local(entry.expiresAt) })),
    cell("Time left", el("span", { class: "left" }, el("span", { class: "words" }), el("span", { class: "bar", "aria-hidden": "true" }, el("span", {})))),
    cell("", remove));
}

function update(element, entry, present) {
  const seconds = Math.ceil((moment(entry.expiresAt) - present) / 1000);
  text(element.querySelector("time"), utc(entry.expiresAt, present));
  text(element.querySelector(".words"), span(seconds));
  const bar = element.querySelector(".bar > span");
  const width = `scaleX(${left(entry.id, present + 1000).toFixed(4)})`; // where it is in a second
  if (bar.style.transform !== width) bar.style.transform = width;
  attribute(element, "class", [seconds <= SOON && "soon", entry.id === pointed && "pointed"].filter(Boolean).join(" ") || null);
  const box = element.querySelector("input");
  if (box.checked !== selected.has(entry.id)) box.checked = selected.has(entry.id);
}

/** A second is over: the bars run down, and what expires now leaves. */
function tick(present) {
  const rest = entries.filter((it) => moment(it.expiresAt) > present);
  for (const [id, entry] of selected) if (moment(entry.expiresAt) <= present) selected.delete(id);
  if (rest.length !== entries.length) {
    total -= entries.length - rest.length;
    entries = rest;
    draw(present);
    ui.tools.show(total);
  } else {
    for (const element of ui.body.children) {
      const entry = entries.find((it) => String(it.id) === element.dataset.key);
      if (entry) update(element, entry, present);
    }
  }
  ui.create.tick(present);
}

function drawChosen() {
  const many = [...selected.values()];
  if (!many.length) {
    if (ui.chosen.contains(document.activeElement)) refocus(ui.body, 0);
    ui.chosen.hidden = true;
    return;
  }
  if (!ui.chosen.firstChild) {
    ui.chosen.append(
      el("p", { role: "status" }),
      el("button", { class: "danger", onclick: () => confirmRemoval([...selected.values()]) }, "Remove them"),
      el("button", { onclick: () => {
        selected.clear();
        draw(now());
      } }, "Select none"));
  }
  ui.chosen.hidden = false;
  text(ui.chosen.firstChild, `${many.length} lock${plural(many.length)} selected`);
}

function confirmRemoval(many) {
  const owners = new Map();
  for (const { owner, serviceInstanceId } of many) {
    owners.set(owner, [...(owners.get(owner) ?? []), serviceInstanceId]);
  }
  const failed = el("p", { role: "alert", class: "refused" });
  const sure = el("button", { class: "danger", onclick: remove }, `Remove ${many.length} lock${plural(many.length)}`);
  const keep = el("button", { onclick: () => box.close() }, "Keep");
  const box = dialog("Remove for good?",
    el("p", {}, "Whoever relies on these locks loses them at once:"),
    el("ul", { class: "list" }, ...many.map((it) => el("li", {}, el("strong", {}, it.serviceInstanceId), ` held by ${it.owner}`))),
    failed,
    el("div", { class: "buttons" },
      el("button", { onclick: () => showCurl("Remove as a command", [...owners].map(([owner, instances]) => curl.lockRemove(owner, instances)).join("\n")) }, "Show as curl"),
      keep, sure));
  box.showModal();
  keep.focus();

  async function remove() {
    text(failed, "");
    for (const [owner, instances] of owners) {
      try {
        await lockRemove(owner, instances);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        text(failed, `Not all locks of ${owner} are removed: ${error.message}`);
        return refresh();
      }
      owners.delete(owner);
      for (const it of many) if (it.owner === owner) selected.delete(it.id);
    }
    box.close();
    announce(`Removed ${many.length} lock${plural(many.length)}.`);
    await refresh();
  }
}

function createForm(go) {
  const instances = el("datalist", { id: "instances" });
  const owners = el("datalist", { id: "owners" });
  const instance = el("input", { name: "instance", required: true, list: "instances", autocomplete: "off", spellcheck: "false", placeholder: "System|service|1.0.0" });
  const owner = el("input", { name: "owner", required: true, list: "owners", autocomplete: "off", spellcheck: "false", placeholder: "name of a system" });
  const wrong = { instance: el("small", { id: "wrong-instance" }), owner: el("small", { id: "wrong-owner" }) };
  const until = el("input", { name: "until", type: "datetime-local", step: "1", "aria-label": "Until, local time", hidden: true });
  const spans = [["60", "+1 min"], ["300", "+5 min"], ["3600", "+1 h"], ["until", "until …"]].map(([value, title], index) =>
    el("label", {}, el("input", { type: "radio", name: "ends", value, checked: index === 0 }), el("span", {}, title)));
  const said = el("div", { class: "refused", role: "alert", hidden: true });
  const form = el("form", { class: "create", "aria-label": "Lock an instance" }, folder("Lock an instance"),
    el("div", { class: "fields" },
      el("label", { class: "field wide" }, el("span", {}, "Lock the instance"), instance, wrong.instance),
      el("label", { class: "field" }, el("span", {}, "for the owner"), owner, wrong.owner),
      el("fieldset", { class: "field" }, el("legend", {}, "for"), el("div", { class: "segments" }, ...spans), until),
      el("button", { type: "submit", class: "main" }, "Lock it"),
      el("button", { onclick: () => showCurl("Lock as a command", curl.lockCreate(wanted())) }, "Show as curl")),
    said, instances, owners);
  form.addEventListener("change", () => {
    until.hidden = form.elements.ends.value !== "until";
    until.required = !until.hidden;
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    lock();
  });

  function wanted() {
    const ends = form.elements.ends.value;
    const end = ends === "until" ? new Date(until.value).getTime() : Math.floor(now() / 1000) * 1000 + Number(ends) * 1000;
    return { locks: [{
      serviceInstanceId: instance.value.trim(),
      owner: owner.value.trim(),
      expiresAt: Number.isNaN(end) ? "" : wire(end),
    }] };
  }

  /** Say beside a field what it should hold, if that is what is refused. */
  function mark(message) {
    for (const input of [instance, owner]) {
      const words = convention(message, input.name);
      text(wrong[input.name], words);
      attribute(input, "aria-invalid", words ? "true" : null);
      attribute(input, "aria-describedby", words ? wrong[input.name].id : null);
    }
  }

  async function lock() {
    pointed = refusal = null;
    said.hidden = true;
    mark("");
    try {
      const made = (await lockCreate(wanted())).entries[0];
      announce(`${made.serviceInstanceId} is locked for ${made.owner}, for ${span((moment(made.expiresAt) - now()) / 1000)}.`);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      await explain(error);
    }
    await refresh();
    ui.body.querySelector(".pointed")?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  /** Who is in the way, and for how long. */
  async function explain(error) {
    said.replaceChildren(el("p", {}, error.message));
    said.hidden = false;
    mark(error.message);
    if (!error.message.startsWith("Already locked: ")) return;
    const found = await lockQuery({ serviceInstanceIds: [instance.value] }).catch(() => null);
    if (!found) return; // what is shown is true, and the page says that the service is away
    const holder = found.entries[0];
    if (!holder) {
      said.replaceChildren(el("p", {}, "It was held until just now: try again."));
      return;
    }
    pointed = holder.id;
    refusal = { holder, words: el("p", {}) };
    said.replaceChildren(refusal.words, el("button", { class: "point", onclick: () =>
      go({ ...Object.fromEntries(LOCK_FILTERS.map((it) => [it.name, null])), serviceInstanceIds: holder.serviceInstanceId, page: null }) }, "Show only this lock"));
    tick(now());
  }

  function tick(present) {
    if (!refusal) return;
    const { holder, words } = refusal;
    const seconds = Math.ceil((moment(holder.expiresAt) - present) / 1000);
    if (seconds > 0) {
      text(words, `Refused: ${holder.owner} holds ${holder.serviceInstanceId} for ${span(seconds)} more (lock #${holder.id}${holder.temporary ? ", temporary" : ""}).`);
      attribute(said, "aria-live", "off"); // said once, not at every second
    } else {
      text(words, `${holder.serviceInstanceId} is free now: lock it.`);
      said.querySelector(".point")?.remove();
      pointed = refusal = null;
    }
  }

  return {
    element: form,
    tick,
    suggest(entries) {
      suggest(instances, entries.map((it) => it.serviceInstanceId));
      suggest(owners, entries.map((it) => it.owner));
    },
  };
}

export const locks = {
  title: "Locks",
  element,
  arrive(its) {
    address = its;
    ui.form.arrive(its);
  },
  load,
  show,
  tick,
};
