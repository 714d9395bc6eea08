// One line on the service: its version, its health, and how much it holds.

import { text } from "./dom.js";
import { WORDS } from "./plots.js";
import { about, historyQuery, identity, lockQuery, Refusal } from "./service.js";
import { counted, number } from "./words.js";

const EVERY = 10_000; // ms
const ONE = { pagination: { page: 0, size: 1 } };

let asked = { as: null, at: -Infinity };

/** Bring the line up to date, unless that was done a short while ago. */
export async function showOverview() {
  if (asked.as === identity.value && performance.now() - asked.at < EVERY) return;
  asked = { as: identity.value, at: performance.now() };
  const parts = [`orchmgmt ${about.version}`, about.health === "ok" ? "healthy" : `not healthy: ${about.health}`];
  try {
    const { count } = await lockQuery(ONE);
    parts.push(counted(count, "active lock"));
    const jobs = await Promise.all(Object.entries(WORDS).map(async ([status, word]) =>
      `${number((await historyQuery({ statuses: [status], ...ONE })).count)} ${word}`));
    parts.push(`jobs: ${jobs.join(", ")}`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error; // nothing is told to who may not see it
  }
  text(document.getElementById("overview"), parts.join(" · "));
}
