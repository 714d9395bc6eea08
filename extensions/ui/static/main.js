// The page as a whole: which view is shown, what its address holds, and when it is brought up to date.

import { el, text, attribute } from "./dom.js";
import { showOverview } from "./overview.js";
import { about, identity, learn, now, Refusal } from "./service.js";
import { askWho, showWho } from "./who.js";
import { locks } from "./locks.js";
import { timeline } from "./timeline.js";
import { history } from "./history.js";
import { convention, utc } from "./words.js";

const EVERY = 2000; // ms between two refreshes
const AGAIN = 3000; // ms until the next try while the service is away

const views = { locks, timeline, history };
const by = (id) => document.getElementById(id);

const page = { address: new URLSearchParams(location.search), view: null, paused: false };
let turn = 0; // of the refresh that counts: what an earlier one brings is out of date
let timer = 0;
let awaySince = null;
let firstShown = false;

/** Change what the address holds; null takes a key out. */
function go(changes, { replace = false } = {}) {
  const address = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === "") address.delete(key);
    else address.set(key, value);
  }
  window.history[replace ? "replaceState" : "pushState"](null, "", `?${address}`);
  arrive();
}

/** Show what the address says. */
function arrive() {
  page.address = new URLSearchParams(location.search);
  const name = Object.hasOwn(views, page.address.get("view") ?? "") ? page.address.get("view") : "locks";
  document.documentElement.classList.toggle("large", page.address.has("large"));
  by("large").setAttribute("aria-pressed", page.address.has("large"));
  for (const link of by("views").children) {
    attribute(link, "aria-current", link.dataset.view === name ? "page" : null);
    link.href = viewAddress(link.dataset.view);
  }
  if (page.view !== views[name]) {
    page.view = views[name];
    document.title = `${page.view.title} · orchmgmt`;
    by("main").replaceChildren(page.view.element(go, refresh));
  }
  page.view.arrive(page.address);
  refresh();
}

function viewAddress(name, extra = {}) {
  const large = page.address.has("large") ? { large: "1" } : {};
  return `?${new URLSearchParams({ view: name, ...extra, ...large })}`;
}

/** Bring the view up to date, and again after a while. */
async function refresh() {
  clearTimeout(timer);
  const mine = ++turn;
  const { view, address } = page;
  let pause = EVERY;
  try {
    await learn(awaySince !== null);
    if (mine !== turn) return;
    showWho();
    showOverview();
    by("unverified").hidden = about.authenticationPolicy !== "declared";
    const answer = await view.load(address);
    if (mine !== turn) return;
    view.show(answer);
    solved();
    if (!firstShown) requestAnimationFrame(() => setTimeout(() => performance.mark("first-view")));
    firstShown = true; // the mark is for who measures
  } catch (error) {
    if (mine !== turn) return;
    if (!(error instanceof Refusal)) throw error;
    if (error.away) pause = AGAIN;
    tell(error, view);
  }
  if (!page.paused) timer = setTimeout(refreshIfSeen, pause);
}

function refreshIfSeen() {
  if (document.hidden) timer = setTimeout(refreshIfSeen, EVERY);
  else refresh();
}

function solved() {
  awaySince = null;
  by("problem").hidden = true;
  text(by("problem-words"), "");
  live(page.paused ? "paused" : "live");
}

function tell(refusal, view) {
  if (refusal.away) {
    awaySince ??= now();
    const since = utc(new Date(awaySince).toISOString().slice(0, 19), now());
    problem(`The service is away since ${since} UTC: ${refusal.message}. What you see is from before; the page tries again by itself.`);
    live("away");
    return;
  }
  awaySince = null;
  live("refused");
  view.show(null); // nothing that this requester may not see stays
  if (refusal.status === 403) {
    const name = identity.value && about.authenticationPolicy === "declared" ? identity.value : "This system";
    problem(`${name} is known here, but may not manage locks and history (403: ${refusal.message}). Operators may, and systems that the management policy lets in.`, true);
  } else if (refusal.status === 401) {
    problem(`The service does not know who is asking (401: ${refusal.message}).`, true);
  } else {
    const words = [`The service does not take what the filters ask for (${refusal.status}: ${refusal.message}).`, convention(refusal.message)];
    problem(words.filter(Boolean).join(" "));
  }
}

function problem(words, whoHelps = false) {
  text(by("problem-words"), words);
  by("problem-action").hidden = !whoHelps;
  by("problem").hidden = false;
}

function live(state) {
  const words = { live: "Live", paused: "Paused", away: "Away", refused: "Refused" }[state];
  by("live").className = state;
  text(by("live-words"), words);
}

/** Every second, as soon as the service's clock has come to it. */
function tick() {
  if (!page.paused && !document.hidden) page.view?.tick(now());
  setTimeout(tick, 1000 - (now() % 1000) + 5);
}

function pause() {
  page.paused = !page.paused;
  document.documentElement.classList.toggle("paused", page.paused);
  by("pause").setAttribute("aria-pressed", page.paused);
  if (page.paused) {
    clearTimeout(timer);
    if (awaySince === null) live("paused");
  } else refresh();
}

for (const [name, view] of Object.entries(views)) {
  const link = el("a", { "data-view": name, href: viewAddress(name) }, view.title);
  by("views").append(link);
}

// A link to a view changes the address without loading the page anew.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='?']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  window.history.pushState(null, "", link.href);
  arrive();
  by("main").focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
window.addEventListener("popstate", arrive);
document.addEventListener("visibilitychange", () => document.hidden || page.paused || refresh());
by("pause").addEventListener("click", pause);
by("large").addEventListener("click", () => go({ large: page.address.has("large") ? null : "1" }, { replace: true }));
by("who").addEventListener("click", () => askWho(refresh));
by("problem-action").addEventListener("click", () => askWho(refresh));
by("skip").addEventListener("click", () => by("main").focus());
arrive();
tick();
