// Two small plots above the history: how many jobs each minute, and how long they ran.

import { el, text } from "./dom.js";
import { moment, number, span, utc } from "./words.js";

const MINUTES = 30;
const ORDER = ["DONE", "ERROR", "IN_PROGRESS", "PENDING"]; // from below
export const WORDS = { DONE: "done", ERROR: "error", IN_PROGRESS: "in progress", PENDING: "pending" };
const LENGTHS = [0, 1, 2, 4, 8, 16, 32, 64]; // s, where each column begins

/** The empty plots; `drawPlots` fills them. */
export function plots() {
  const minutes = plot("Jobs per minute", MINUTES, ORDER);
  const lengths = plot("How long jobs ran", LENGTHS.length, ORDER.slice(0, 2));
  LENGTHS.forEach((from, index) => {
    const until = LENGTHS[index + 1];
    lengths.columns[index].label.textContent = until === undefined ? `${from}+ s` : until - from === 1 ? `${from} s` : `${from}–${until - 1}`;
  });
  const legend = el("p", { class: "legend" }, ...ORDER.map((it) => el("span", { class: "key" }, el("span", { class: `sample fill-${it}` }), WORDS[it])));
  return { minutes, lengths, element: el("div", { class: "plots" }, minutes.element, lengths.element, legend) };
}

function plot(title, count, statuses) {
  const columns = Array.from({ length: count }, () => {
    const fills = statuses.map((it) => el("span", { class: `fill-${it}` }));
    const label = el("span", { class: "label" });
    return { fills, label, element: el("span", { class: "column" }, el("span", { class: "stack" }, ...fills), label) };
  });
  const picture = el("div", { class: "columns", role: "img" }, ...columns.map((it) => it.element));
  const top = el("span", { class: "top", "aria-hidden": "true" });
  const note = el("span", { class: "quiet" });
  const element = el("figure", {}, el("figcaption", {}, el("strong", {}, title), " ", note), el("div", { class: "area" }, top, picture));
  return { title, columns, picture, top, note, element };
}

/** Fill the plots from the newest jobs that match; `count` is the number of all that do. */
export function drawPlots({ minutes, lengths }, { jobs, count }, present) {
  drawMinutes(minutes, jobs, count, present);
  drawLengths(lengths, jobs);
}

function drawMinutes(plot, jobs, count, present) {
  const times = jobs.map((it) => moment(it.createdAt));
  const newest = Math.max(...times);
  // The last minutes; or, if nothing was in them, those up to the newest job.
  const last = Math.floor((newest > present - MINUTES * 60_000 || !jobs.length ? present : newest) / 60_000);
  const sums = plot.columns.map(() => [0, 0, 0, 0]);
  jobs.forEach((job, index) => {
    const column = MINUTES - 1 - (last - Math.floor(times[index] / 60_000));
    if (column >= 0 && column < MINUTES) sums[column][ORDER.indexOf(job.status)] += 1;
  });
  const oldest = count > jobs.length ? Math.floor(Math.min(...times) / 60_000) : -Infinity;
  const most = fill(plot, sums);
  plot.columns.forEach(({ element, label }, index) => {
    const minute = last - MINUTES + 1 + index;
    const unknown = minute <= oldest;
    if (element.classList.contains("unknown") !== unknown) element.classList.toggle("unknown", unknown);
    const marked = (MINUTES - 1 - index) % 10 === 9 || index === MINUTES - 1;
    text(label, marked ? utc(new Date(minute * 60_000).toISOString().slice(0, 16), present) : "");
  });
  const all = sums.flat().reduce((sum, it) => sum + it, 0);
  const of = count > jobs.length ? `the newest ${number(jobs.length)} of ${number(count)}` : "";
  text(plot.note, of);
  const by = ORDER.map((it, index) => `${sums.reduce((sum, column) => sum + column[index], 0)} ${WORDS[it]}`);
  label(plot, `${plot.title}: in the ${MINUTES} minutes until ${utc(new Date(last * 60_000).toISOString().slice(0, 16), present)} UTC ${all} jobs, ${by.join(", ")}; at most ${most} in a minute${of && `; ${of}`}`);
}

function drawLengths(plot, jobs) {
  const ended = jobs.filter((it) => it.startedAt && it.finishedAt);
  const spans = ended.map((it) => Math.max(0, (moment(it.finishedAt) - moment(it.startedAt)) / 1000));
  const sums = plot.columns.map(() => [0, 0]);
  spans.forEach((it, index) => {
    const column = LENGTHS.findLastIndex((from) => from <= it);
    sums[column][ended[index].status === "ERROR" ? 1 : 0] += 1;
  });
  fill(plot, sums);
  spans.sort((a, b) => a - b);
  const share = (part) => span(spans[Math.min(spans.length - 1, Math.floor(part * spans.length))]);
  const words = spans.length ? `half within ${share(0.5)}, 95 % within ${share(0.95)}` : "none has ended";
  text(plot.note, words);
  const columns = sums.map(([done, error], index) => `${plot.columns[index].label.textContent}: ${done + error}`);
  label(plot, `${plot.title}, in seconds: ${words}; ${columns.join(", ")}`);
}

/** Set the heights of the columns; return what the highest stands for. */
function fill(plot, sums) {
  const most = Math.max(1, ...sums.map((column) => column.reduce((sum, it) => sum + it, 0)));
  sums.forEach((column, index) => {
    column.forEach((sum, place) => {
      const height = `${((sum / most) * 100).toFixed(1)}%`;
      const { style } = plot.columns[index].fills[place];
      if (style.height !== height) style.height = height;
    });
  });
  text(plot.top, String(most));
  return most;
}

function label(plot, words) {
  if (plot.picture.getAttribute("aria-label") !== words) plot.picture.setAttribute("aria-label", words);
}
