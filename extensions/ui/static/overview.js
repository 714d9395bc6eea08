// The line about the service: its version, its health, its locks and its jobs.

import { setText } from "./dom.js";
import { formatCount, formatNumber, STATUSES } from "./format.js";
import { identity, queryJobs, queryLocks, Refusal, serviceInfo } from "./service.js";

const UPDATE_AFTER = 10_000; // ms
const SMALLEST_PAGE = { pagination: { page: 0, size: 1 } };

let updated = { requester: null, at: -Infinity };

export async function showOverview() {
	const requester = identity.value;
	if (updated.requester === requester && performance.now() - updated.at < UPDATE_AFTER) return;
	updated = { requester, at: performance.now() };
	const { version, health } = serviceInfo;
	const parts = [`orchmgmt ${version}`, health === "ok" ? "healthy" : `not healthy: ${health}`];
	try {
		const { count } = await queryLocks(SMALLEST_PAGE);
		parts.push(formatCount(count, "active lock"));
		const jobs = await Promise.all(Object.keys(STATUSES).map(countJobs));
		parts.push(`jobs: ${jobs.join(", ")}`);
	} catch (error) {
		if (!(error instanceof Refusal)) throw error; // this requester may not see the counts
	}
	setText(document.getElementById("overview"), parts.join(" · "));
}

async function countJobs(status) {
	const { count } = await queryJobs({ statuses: [status], ...SMALLEST_PAGE });
	return `${formatNumber(count)} ${STATUSES[status].word.toLowerCase()}`;
}
