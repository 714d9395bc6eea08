// The service as the page knows it: its operations, its clock, and who is asking.

import { quoted } from "./words.js";

const MANAGEMENT = "../serviceorchestration/orchestration/mgmt";
const QUERY_LENGTH = 4000; // characters at most, but for a single instance
const PATIENCE = 15_000; // ms for an answer
const CLOCK_AGE = 10_000; // ms until the service is asked about itself and its clock again

/** What the service tells of itself, once `learn` has asked. */
export const about = { authenticationPolicy: "", identityUrl: "", maxPageSize: 1000, version: "", health: "ok" };

const clock = { ahead: 0, read: -Infinity };

/** A refusal in the service's words; `status` is 0 when nothing came back. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** Whether it may go away by itself. */
  get away() {
    return this.status === 0 || this.status >= 500;
  }
}

/** The present by the clock that decides what has expired, in ms since the epoch. */
export function now() {
  return Date.now() + clock.ahead;
}

/** Ask the service about itself, unless that is known and its clock was read a short while ago. */
export async function learn(anew = false) {
  if (!anew && performance.now() - clock.read < CLOCK_AGE) return;
  const began = Date.now();
  const told = await send("GET", "service.json");
  clock.ahead = told.time * 1000 - (began + Date.now()) / 2;
  clock.read = performance.now();
  Object.assign(about, told);
}

// Who is asking is kept for the tab only: in memory where the browser keeps nothing for a page.
const kept = tabStorage();

function tabStorage() {
  try {
    sessionStorage.setItem("", "");
    sessionStorage.removeItem("");
    return sessionStorage;
  } catch {
    const memory = new Map();
    return {
      getItem: (key) => memory.get(key) ?? null,
      setItem: (key, value) => memory.set(key, value),
      removeItem: (key) => memory.delete(key),
    };
  }
}

export const identity = {
  /** The name under `declared`, the token under `outsourced`. */
  get value() {
    return kept.getItem(about.authenticationPolicy) ?? { declared: "Sysop" }[about.authenticationPolicy] ?? "";
  },
  set value(value) {
    if (value) kept.setItem(about.authenticationPolicy, value);
    else kept.removeItem(about.authenticationPolicy);
  },
  header(value = this.value) {
    const kind = { declared: "SYSTEM", outsourced: "IDENTITY-TOKEN" }[about.authenticationPolicy];
    return kind && value ? { Authorization: `Bearer ${kind}//${value}` } : {};
  },
};

export const lockQuery = (body) => send("POST", `${MANAGEMENT}/lock/query`, body);
export const historyQuery = (body) => send("POST", `${MANAGEMENT}/history/query`, body);
export const lockCreate = (body) => send("POST", `${MANAGEMENT}/lock/create`, body);
export async function lockRemove(owner, instances) {
  for (const path of removals(owner, instances)) await send("DELETE", path);
}
export const who = () => send("GET", "who.json");

/** Log in at the identity service itself: the password passes by nobody else. */
export async function logIn(systemName, password) {
  const body = { systemName, credentials: { password } };
  return send("POST", `${about.identityUrl}/login`, body, {});
}

/** Paths that remove these, none of them too long for a proxy. */
function removals(owner, instances) {
  const queries = [];
  for (const instance of instances) {
    const one = `instanceIds=${encodeURIComponent(instance)}`;
    const longer = `${queries.at(-1)}&${one}`;
    if (queries.length && longer.length <= QUERY_LENGTH) queries[queries.length - 1] = longer;
    else queries.push(one);
  }
  return queries.map((it) => `${MANAGEMENT}/lock/remove/${encodeURIComponent(owner)}?${it}`);
}

async function send(method, path, body, headers = identity.header()) {
  const request = {
    method,
    headers: body === undefined ? headers : { ...headers, "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    signal: AbortSignal.timeout(PATIENCE),
  };
  let response, answer;
  try {
    response = await fetch(path, request);
    answer = await response.text();
  } catch {
    throw new Refusal(0, "It does not answer");
  }
  let told = null;
  try {
    told = answer ? JSON.parse(answer) : null;
  } catch {
    if (response.ok) throw new Refusal(502, "What answers is not the service");
  }
  if (!response.ok) {
    throw new Refusal(response.status, told?.errorMessage ?? `It answers with status ${response.status}`);
  }
  return told;
}

/** The same requests for a shell, with what proves who is asking left to who types them. */
export const curl = {
  lockQuery: (body) => command("POST", `${MANAGEMENT}/lock/query`, body),
  historyQuery: (body) => command("POST", `${MANAGEMENT}/history/query`, body),
  lockCreate: (body) => command("POST", `${MANAGEMENT}/lock/create`, body),
  lockRemove: (owner, instances) => removals(owner, instances).map((it) => command("DELETE", it)).join("\n"),
};

function command(method, path, body) {
  const words = [`curl -s -X ${method} ${quoted(new URL(path, location.href).href)}`];
  if (about.authenticationPolicy === "declared") {
    words.push(`-H ${quoted(`Authorization: Bearer SYSTEM//${identity.value}`)}`);
  } else if (about.authenticationPolicy === "outsourced") {
    words.push('-H "Authorization: Bearer IDENTITY-TOKEN//$TOKEN"');
  } else {
    words.push("--cert client.pem --key client.key");
  }
  if (body !== undefined) {
    words.push(`-H 'Content-Type: application/json'`, `-d ${quoted(JSON.stringify(body))}`);
  }
  return words.join(" \\\n  ");
}
