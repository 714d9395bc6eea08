// The page as a whole: which view is shown, what the address holds, and when the view is refreshed.
//
// A view has a `title`, and five functions:
//   create(navigate, refresh)  returns its elements
//   setAddress(address)        takes the URLSearchParams of the address
//   load()                     returns a promise of the service's answer
//   show(answer)               shows it; null if the service refused
//   tick(now)                  updates what depends on the time, every second

import { el, setAttribute, setText } from "./dom.js";
import { formatUtc, namingHint } from "./format.js";
import { history } from "./history.js";
import { locks } from "./locks.js";
import { showOverview } from "./overview.js";
import { identity, loadServiceInfo, Refusal, serviceInfo, serviceTime } from "./service.js";
import { timeline } from "./timeline.js";
import { askWho, showWho } from "./who.js";

const REFRESH_AFTER = 2000; // ms
const RETRY_AFTER = 3000; // ms, while the service is unavailable
const STATES = { live: "Live", paused: "Paused", unavailable: "Unavailable", refused: "Refused" };

const views = { locks, timeline, history };
const byId = (id) => document.getElementById(id);

let address = new URLSearchParams();
let view = null;
let paused = false;
let lastRefresh = 0; // its number: answers to earlier ones are out of date
let timer = 0;
let unavailableSince = null;

/** Change what the address holds; null removes a key. */
function navigate(changes, { replace = false } = {}) {
	const changed = new URLSearchParams(location.search);
	for (const [key, value] of Object.entries(changes)) {
		if (value === null || value === "") changed.delete(key);
		else changed.set(key, value);
	}
	window.history[replace ? "replaceState" : "pushState"](null, "", `?${changed}`);
	showAddress();
}

function showAddress() {
	address = new URLSearchParams(location.search);
	const wanted = address.get("view") ?? "";
	const name = Object.hasOwn(views, wanted) ? wanted : "locks";
	document.documentElement.classList.toggle("large", address.has("large"));
	byId("large").setAttribute("aria-pressed", address.has("large"));
	for (const link of byId("views").children) {
		setAttribute(link, "aria-current", link.dataset.view === name ? "page" : null);
		link.href = viewAddress(link.dataset.view);
	}
	if (view !== views[name]) {
		view = views[name];
		document.title = `${view.title} · orchmgmt`;
		const heading = el("h1", { id: "title" }, view.title);
		const elements = view.create(navigate, refresh);
		const section = el("section", { "aria-labelledby": "title" }, heading, ...elements);
		byId("main").replaceChildren(section);
	}
	view.setAddress(address);
	refresh();
}

function viewAddress(name) {
	return address.has("large") ? `?view=${name}&large=1` : `?view=${name}`;
}

async function refresh() {
	clearTimeout(timer);
	lastRefresh += 1;
	const number = lastRefresh;
	const isOutdated = () => number !== lastRefresh;
	const refreshed = view;
	let wait = REFRESH_AFTER;
	try {
		await loadServiceInfo(unavailableSince !== null);
		if (isOutdated()) return;
		showWho();
		showOverview();
		byId("unverified").hidden = serviceInfo.authenticationPolicy !== "declared";
		const answer = await refreshed.load();
		if (isOutdated()) return;
		refreshed.show(answer);
		showSuccess();
	} catch (error) {
		if (isOutdated()) return;
		if (!(error instanceof Refusal)) throw error;
		if (error.unavailable) wait = RETRY_AFTER;
		showRefusal(error);
	}
	if (!paused) timer = setTimeout(refreshIfVisible, wait);
}

function refreshIfVisible() {
	if (document.hidden) timer = setTimeout(refreshIfVisible, REFRESH_AFTER);
	else refresh();
}

function showSuccess() {
	unavailableSince = null;
	byId("problem").hidden = true;
	setText(byId("problem-words"), "");
	showState(paused ? "paused" : "live");
	if (performance.getEntriesByName("first-view").length) return;
	// For measurements: the first view has been painted.
	requestAnimationFrame(() => setTimeout(() => performance.mark("first-view")));
}

function showRefusal({ status, message, unavailable }) {
	if (unavailable) {
		unavailableSince ??= serviceTime();
		const since = formatUtc(unavailableSince, serviceTime());
		showProblem(
			`The service has been unavailable since ${since} UTC: ${message}. ` +
				"You see what it answered before. The page keeps trying.",
		);
		showState("unavailable");
		return;
	}
	unavailableSince = null;
	showState("refused");
	view.show(null);
	if (status === 403) {
		const name = serviceInfo.authenticationPolicy === "declared" ? identity.value : "This system";
		showProblem(
			`${name || "Nobody"} may not manage locks and history (403: ${message}). ` +
				"Operators may, and the systems that the management policy allows.",
			true,
		);
	} else if (status === 401) {
		showProblem(`The service does not know who is asking (401: ${message}).`, true);
	} else {
		showProblem(
			`The service does not accept these filters (${status}: ${message}). ${namingHint(message)}`,
		);
	}
}

function showProblem(words, canBeSolvedByIdentity = false) {
	setText(byId("problem-words"), words);
	byId("problem-action").hidden = !canBeSolvedByIdentity;
	byId("problem").hidden = false;
}

function showState(state) {
	byId("live").className = state;
	setText(byId("live-words"), STATES[state]);
}

/** Call the view's `tick` at each full second of the service's clock. */
function tick() {
	if (!paused && !document.hidden) view.tick(serviceTime());
	setTimeout(tick, 1000 - (serviceTime() % 1000) + 5);
}

function togglePause() {
	paused = !paused;
	document.documentElement.classList.toggle("paused", paused);
	byId("pause").setAttribute("aria-pressed", paused);
	if (!paused) {
		refresh();
		return;
	}
	clearTimeout(timer);
	if (unavailableSince === null) showState("paused");
}

function toggleLarge() {
	navigate({ large: address.has("large") ? null : "1" }, { replace: true });
}

function followLink(event) {
	const link = event.target.closest("a[href^='?']");
	if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
	event.preventDefault();
	window.history.pushState(null, "", link.href);
	showAddress();
	byId("main").focus({ preventScroll: true });
	window.scrollTo(0, 0);
}

for (const [name, { title }] of Object.entries(views)) {
	byId("views").append(el("a", { "data-view": name }, title));
}
document.addEventListener("click", followLink);
document.addEventListener("visibilitychange", () => {
	if (!document.hidden && !paused) refresh();
});
window.addEventListener("popstate", showAddress);
byId("pause").addEventListener("click", togglePause);
byId("large").addEventListener("click", toggleLarge);
byId("who").addEventListener("click", () => askWho(refresh));
byId("problem-action").addEventListener("click", () => askWho(refresh));
byId("skip").addEventListener("click", () => byId("main").focus());
showAddress();
tick();
