// The view of the history: which jobs ran, how long they waited and ran, and what they came to.

import { attribute, el, reconcile, text } from "./dom.js";
import { askFiltered, filtered, filterForm, see } from "./filters.js";
import { cell, head, paged, pager, toolbar } from "./frame.js";
import { drawPlots, plots } from "./plots.js";
import { about, curl, historyQuery, lockQuery, now, Refusal } from "./service.js";
import { local, moment, span, utc } from "./words.js";

export const STATUSES = {
  PENDING: ["○", "Pending"],
  IN_PROGRESS: ["◐", "In progress"],
  DONE: ["✓", "Done"],
  ERROR: ["✕", "Error"],
};
const FILTERS = [
  { name: "statuses", label: "Status", kind: "checks", options: Object.entries(STATUSES).map(([it, [, title]]) => [it, title]) },
  { name: "type", label: "Type", kind: "choice", options: [["", "any"], ["PULL", "pull"], ["PUSH", "push"]] },
  { name: "requesterSystems", label: "Requester", hint: "name, or a part", of: "requesterSystem" },
  { name: "targetSystems", label: "Target", hint: "name, or a part", of: "targetSystem", more: true },
  { name: "serviceDefinitions", label: "Service", hint: "name, or a part", of: "serviceDefinition" },
  { name: "ids", label: "Job", hint: "id, or a part", of: "id", whole: /^.{36}/, more: true },
  { name: "subscriptionIds", label: "Subscription", hint: "id, or a part", of: "subscriptionId", whole: /^.{36}/, more: true },
];
const JOB_COLUMNS = [
  "id", "status", "type", "requesterSystem", "targetSystem", "serviceDefinition", "subscriptionId",
  "message", "createdAt", "startedAt", "finishedAt",
];
const SIZES = { offered: [25, 50, 100, 200], usual: 25 };
const ORDER = { sizes: SIZES, sort: "createdAt", direction: "DESC" };
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
const PLOTTED = 1000; // jobs at most
const PLOTS_EVERY = 10_000; // ms

let ui = null;
let address = new URLSearchParams();
let entries = [];
let total = 0;
let locksOf = new Map(); // by job id, of those that are open
let plotted = { asked: "", at: -Infinity, jobs: [], count: 0 };

function element(go) {
  const form = filterForm(FILTERS, go);
  const tools = toolbar({ word: "job", columns: JOB_COLUMNS, shown: () => entries, curl: () => curl.historyQuery(query(address)) });
  const heading = head(COLUMNS, go);
  const body = el("tbody", { role: "rowgroup" });
  const table = el("table", { role: "table", class: "jobs", tabindex: "-1", "aria-label": "Jobs" }, heading.element, body);
  const empty = el("p", { class: "empty", hidden: true });
  const pages = pager(SIZES, go);
  ui = { form, tools, heading, body, empty, pages, plots: plots(), go };
  entries = [];
  return el("section", { "aria-labelledby": "title" },
    el("h1", { id: "title" }, "History"), form.element, ui.plots.element, tools.element,
    el("div", { class: "sheet" }, table, empty), pages.element);
}

function query(address) {
  return { ...filtered(FILTERS, address), pagination: paged(address, ORDER, about.maxPageSize) };
}

/** The jobs that are open, which the address tells too. */
function openJobs() {
  return (address.get("open") ?? "").split(",").filter(Boolean);
}

async function load(address) {
  const { pagination } = query(address);
  const answer = await askFiltered(FILTERS, address, historyQuery, { pagination });
  await Promise.all([loadOpen(answer), loadPlots(address)]);
  return answer;
}

/** An open job stays in sight when newer ones have taken its page. */
async function loadOpen(answer) {
  const open = openJobs();
  if (!open.length) return;
  const missing = open.filter((id) => !answer.entries.some((it) => it.id === id));
  try {
    const [jobs, held] = await Promise.all([
      missing.length ? historyQuery({ ids: missing }) : { entries: [] },
      lockQuery({ orchestrationJobIds: open }),
    ]);
    answer.entries.push(...jobs.entries);
    locksOf = new Map(open.map((id) => [id, held.entries.filter((it) => it.orchestrationJobId === id)]));
  } catch (error) {
    if (!(error instanceof Refusal) || error.away) throw error;
    locksOf = new Map(); // an address may hold anything, and one may see jobs and not locks
  }
}

/** The plots show the newest of all jobs that match, whatever the page. */
async function loadPlots(address) {
  const body = filtered(FILTERS, address);
  const asked = JSON.stringify(body);
  if (asked === plotted.asked && performance.now() - plotted.at < PLOTS_EVERY) return;
  const size = Math.min(PLOTTED, about.maxPageSize);
  const pagination = { page: 0, size, sortField: "createdAt", direction: "DESC" };
  const nothing = Object.values(body).some((it) => !it.length);
  const answer = nothing ? { entries: [], count: 0 } : await historyQuery({ ...body, pagination });
  see(FILTERS, answer.entries);
  plotted = { asked, at: performance.now(), jobs: answer.entries, count: answer.count };
}

function show(answer) {
  entries = answer?.entries ?? [];
  total = answer?.count ?? 0;
  const present = now();
  const pagination = paged(address, ORDER, about.maxPageSize);
  ui.heading.show(pagination);
  drawRows(present);
  ui.pages.show(pagination, total);
  ui.tools.show(answer ? total : null);
  ui.empty.hidden = !answer || entries.length > 0;
  text(ui.empty, Object.keys(filtered(FILTERS, address)).length ? "No job matches these filters." : "No job has been recorded yet.");
  if (!answer) plotted = { asked: "", at: -Infinity, jobs: [], count: 0 };
  drawPlots(ui.plots, plotted, present);
}

function drawRows(present) {
  const open = openJobs();
  const rows = entries.flatMap((job) => (open.includes(job.id) ? [{ job }, { job, course: true }] : [{ job }]));
  reconcile(ui.body, rows, ({ job, course }) => (course ? `${job.id} course` : job.id),
    (it) => (it.course ? el("tr", { role: "row", class: "course" }, el("td", { role: "cell", colspan: COLUMNS.length })) : row(it.job)),
    (element, { job, course }) => (course ? drawCourse(element, job, present) : update(element, job, open.includes(job.id), present)));
}

function row(job) {
  const opener = el("button", { class: "open", onclick: () => {
    const open = openJobs();
    const rest = open.filter((it) => it !== job.id);
    ui.go({ open: (rest.length < open.length ? rest : [...open, job.id]).join(",") }, { replace: true });
  } }, el("span", { class: "mark", "aria-hidden": "true" }), el("span", { class: "words" }));
  const target = job.targetSystem === job.requesterSystem ? [] : [el("span", { class: "arrow" }, " → "), job.targetSystem];
  return el("tr", { role: "row" },
    cell("Status", opener),
    cell("Type", (job.type ?? "").toLowerCase()),
    cell("Requester → target", el("span", {}, job.requesterSystem, ...target)),
    cell("Service", job.serviceDefinition),
    cell("Created", el("time", { datetime: job.createdAt, title: local(job.createdAt) })),
    cell("Waited", el("span", { class: "waited" })),
    cell("Ran", el("span", { class: "ran" })),
    cell("Message", el("span", { class: "message" })));
}

function update(element, job, open, present) {
  const [mark, word] = STATUSES[job.status] ?? ["?", job.status];
  attribute(element, "class", `is-${job.status}${open ? " opened" : ""}`);
  attribute(element.querySelector(".open"), "aria-expanded", String(open));
  text(element.querySelector(".mark"), mark);
  text(element.querySelector(".words"), word);
  text(element.querySelector("time"), utc(job.createdAt, present));
  text(element.querySelector(".waited"), waited(job, present));
  text(element.querySelector(".ran"), ran(job, present));
  text(element.querySelector(".message"), job.message ?? "");
}

function waited(job, present) {
  const until = moment(job.startedAt);
  if (Number.isNaN(until)) return `${span((present - moment(job.createdAt)) / 1000)} so far`;
  return span((until - moment(job.createdAt)) / 1000);
}

function ran(job, present) {
  const began = moment(job.startedAt);
  if (Number.isNaN(began)) return "–";
  const ended = moment(job.finishedAt);
  if (Number.isNaN(ended)) return `${span((present - began) / 1000)} so far`;
  return span((ended - began) / 1000);
}

/** What happened to a job, step by step, and what it holds now. */
function drawCourse(element, job, present) {
  const steps = [[job.createdAt, "was created", job.subscriptionId ? `by subscription ${job.subscriptionId}` : `by a request of ${job.requesterSystem}`]];
  steps.push(job.startedAt ? [job.startedAt, "was started", `after ${waited(job, present)}`] : ["", "waits", waited(job, present)]);
  if (job.finishedAt) steps.push([job.finishedAt, job.status === "ERROR" ? "failed" : "was done", `after ${ran(job, present)}`]);
  else if (job.startedAt) steps.push(["", "runs", ran(job, present)]);
  const held = locksOf.get(job.id) ?? [];
  const key = JSON.stringify([job, held.map((it) => it.id)]);
  const place = element.firstChild;
  if (place.dataset.key === key) {
    place.querySelectorAll("ol > li > .how").forEach((it, index) => text(it, ` ${steps[index][2]}`));
  } else {
    place.dataset.key = key;
    place.replaceChildren(
      el("p", { class: "quiet" }, "Job ", el("code", {}, job.id), ` for ${job.targetSystem}`),
      el("ol", {}, ...steps.map(([time, what, how]) => el("li", {}, time ? el("time", { datetime: time, title: local(time) }, utc(time, present)) : el("span", {}, "now"), ` it ${what}`, el("span", { class: "how" }, ` ${how}`)))),
      ...(job.message ? [el("p", {}, "Its message: ", el("q", {}, job.message))] : []),
      held.length
        ? el("div", {}, el("p", {}, "It holds:"), el("ul", { class: "held" }, ...held.map((it) => el("li", {}, el("a", { href: `?${new URLSearchParams({ view: "locks", ids: it.id })}` }, it.serviceInstanceId), ` for ${it.owner}, `, el("span", { class: "left" })))))
        : el("p", { class: "quiet" }, "It holds no lock now."));
  }
  place.querySelectorAll(".held .left").forEach((it, index) => text(it, `${span(Math.ceil((moment(held[index].expiresAt) - present) / 1000))} left`));
}

function tick(present) {
  for (const [id, held] of locksOf) locksOf.set(id, held.filter((it) => moment(it.expiresAt) > present));
  drawRows(present);
}

export const history = {
  title: "History",
  element,
  arrive(its) {
    address = its;
    ui.form.arrive(its);
    drawRows(now());
  },
  load,
  show,
  tick,
};
