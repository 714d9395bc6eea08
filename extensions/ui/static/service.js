// The service: its operations, its clock, and who the page says it is.

import { shellQuote } from "./format.js";

const MANAGEMENT = "../serviceorchestration/orchestration/mgmt";
const MAX_QUERY_LENGTH = 4000; // characters; a single instance may be longer
const TIMEOUT = 15_000; // ms for an answer
const RELOAD_INFO_AFTER = 10_000; // ms

/** How the service refuses a create when instances are locked; all of them follow. */
const ALREADY_LOCKED = "Already locked: ";

/** What `/ui/service.json` says, once `loadServiceInfo` has read it. */
export const serviceInfo = {
	authenticationPolicy: "",
	identityUrl: "",
	maxPageSize: 1000,
	version: "",
	health: "ok",
};

let clockOffset = 0; // ms that the service's clock is ahead of the browser's
let infoLoadedAt = -Infinity;

/** A request failed. `status` is that of the answer, or 0 if there was none. */
export class Refusal extends Error {
	constructor(status, message) {
		super(message);
		this.status = status;
	}

	/** Whether the same request may succeed later. */
	get unavailable() {
		return this.status === 0 || this.status >= 500;
	}

	/** The instances that were locked already; none if the service refused for another reason. */
	get lockedInstances() {
		if (!this.message.startsWith(ALREADY_LOCKED)) return [];
		return this.message.slice(ALREADY_LOCKED.length).split(", ");
	}
}

/** The service's time in ms since the epoch. It decides which locks have expired. */
export function serviceTime() {
	return Date.now() + clockOffset;
}

export async function loadServiceInfo(force = false) {
	if (!force && performance.now() - infoLoadedAt < RELOAD_INFO_AFTER) return;
	const before = Date.now();
	const info = await send("GET", "service.json");
	clockOffset = info.time * 1000 - (before + Date.now()) / 2;
	infoLoadedAt = performance.now();
	Object.assign(serviceInfo, info);
}

/** Storage for this tab; where the browser forbids it, until the page is loaded again. */
const storage = tabStorage();

function tabStorage() {
	try {
		return sessionStorage;
	} catch {
		const memory = new Map();
		return {
			getItem: (key) => memory.get(key),
			setItem: (key, value) => memory.set(key, value),
		};
	}
}

/** A name under the policy `declared`, a token under `outsourced`. */
export const identity = {
	get value() {
		const policy = serviceInfo.authenticationPolicy;
		return storage.getItem(policy) || (policy === "declared" ? "Sysop" : "");
	},
	set value(value) {
		storage.setItem(serviceInfo.authenticationPolicy, value);
	},
	get headers() {
		const kinds = { declared: "SYSTEM", outsourced: "IDENTITY-TOKEN" };
		const kind = kinds[serviceInfo.authenticationPolicy];
		return kind && this.value ? { Authorization: `Bearer ${kind}//${this.value}` } : {};
	},
};

// `act` sends the request. Where it is `asCurl`, the request is returned as a shell command.
export const queryLocks = (body, act = send) => act("POST", `${MANAGEMENT}/lock/query`, body);
export const queryJobs = (body, act = send) => act("POST", `${MANAGEMENT}/history/query`, body);
export const createLocks = (body, act = send) => act("POST", `${MANAGEMENT}/lock/create`, body);
export const renewLocks = (body, act = send) => act("POST", `${MANAGEMENT}/lock/renew`, body);
export async function removeLocks(owner, instances) {
	for (const path of removalPaths(owner, instances)) await send("DELETE", path);
}
export function removeLocksAsCurl(owner, instances) {
	return removalPaths(owner, instances)
		.map((path) => asCurl("DELETE", path))
		.join("\n");
}
export const whoAmI = () => send("GET", "who.json");

/** Log in directly at the identity service: nobody else sees the password. */
export async function logIn(systemName, password) {
	const body = { systemName, credentials: { password } };
	return send("POST", `${serviceInfo.identityUrl}/login`, body, {});
}

/** The paths that remove these locks. Several, if one would be too long for a proxy. */
function removalPaths(owner, instances) {
	const queries = [];
	for (const instance of instances) {
		const parameter = `instanceIds=${encodeURIComponent(instance)}`;
		const longer = `${queries.at(-1)}&${parameter}`;
		if (queries.length && longer.length <= MAX_QUERY_LENGTH) queries[queries.length - 1] = longer;
		else queries.push(parameter);
	}
	const path = `${MANAGEMENT}/lock/remove/${encodeURIComponent(owner)}`;
	return queries.map((query) => `${path}?${query}`);
}

async function send(method, path, body, headers = identity.headers) {
	const request = { method, headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) };
	if (body !== undefined) {
		request.headers = { ...headers, "Content-Type": "application/json" };
		request.body = JSON.stringify(body);
	}
	let response;
	let text;
	try {
		response = await fetch(path, request);
		text = await response.text();
	} catch {
		throw new Refusal(0, "It does not answer");
	}
	let answer = null;
	try {
		answer = text ? JSON.parse(text) : null;
	} catch {
		if (response.ok) throw new Refusal(502, "The answer does not come from the service");
	}
	if (response.ok) return answer;
	throw new Refusal(response.status, answer?.errorMessage ?? `It answers with ${response.status}`);
}

/** A request as a shell command. It names no token and no certificate, only where to put them. */
export function asCurl(method, path, body) {
	const words = [`curl -s -X ${method} ${shellQuote(new URL(path, location.href).href)}`];
	if (serviceInfo.authenticationPolicy === "declared") {
		words.push(`-H ${shellQuote(`Authorization: Bearer SYSTEM//${identity.value}`)}`);
	} else if (serviceInfo.authenticationPolicy === "outsourced") {
		words.push('-H "Authorization: Bearer IDENTITY-TOKEN//$TOKEN"');
	} else {
		words.push("--cert client.pem --key client.key");
	}
	if (body !== undefined) {
		words.push(`-H 'Content-Type: application/json'`, `-d ${shellQuote(JSON.stringify(body))}`);
	}
	return words.join(" \\\n  ");
}
