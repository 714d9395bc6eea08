// The form that locks an instance, and says who is in the way if the service refuses.

import { announce, el, foldButton, labelled, nameInput, setAttribute, setText } from "./dom.js";
import { LOCKS, suggest } from "./filters.js";
import { formatDuration, namingHint, parseTime, toDateTime } from "./format.js";
import { asCurl, createLocks, queryLocks, Refusal, serviceTime } from "./service.js";
import { segments, showCurl } from "./widgets.js";

export const TIMES = { 60: "+1 min", 300: "+5 min", 3600: "+1 h" }; // by their seconds

export function createLockForm(navigate, refresh) {
	const instance = nameField("instance", "Lock the instance", "System|service|1.0.0");
	const owner = nameField("owner", "for the owner", "name of a system");
	const until = el("input", {
		name: "until",
		type: "datetime-local",
		step: "1",
		"aria-label": "Until, local time",
		hidden: true,
	});
	const times = segments("for", "ends", { ...TIMES, until: "until …" });
	times.append(until);
	const refusal = el("div.refused", { role: "alert", hidden: true });
	const showCommand = () => showCurl("Lock as a command", createLocks(request(), asCurl));
	instance.element.classList.add("wide");
	const form = el(
		"form.create",
		{ "aria-label": "Lock an instance" },
		foldButton("Lock an instance"),
		el(
			"div.fields",
			instance.element,
			owner.element,
			times,
			el("button.main", { type: "submit" }, "Lock it"),
			el("button", { onclick: showCommand }, "Show as curl"),
		),
		refusal,
	);
	let inTheWay = null; // the lock because of which the last create was refused

	form.addEventListener("change", () => {
		until.hidden = form.elements.ends.value !== "until";
		until.required = !until.hidden;
	});
	form.addEventListener("submit", (event) => {
		event.preventDefault();
		submit();
	});

	function request() {
		const time = form.elements.ends.value;
		const thisSecond = Math.floor(serviceTime() / 1000) * 1000;
		const end = time === "until" ? Date.parse(until.value) : thisSecond + Number(time) * 1000;
		const expiresAt = Number.isNaN(end) ? "" : toDateTime(end);
		return { locks: [{ serviceInstanceId: instance.value(), owner: owner.value(), expiresAt }] };
	}

	async function submit() {
		inTheWay = null;
		refusal.hidden = true;
		showHints("");
		try {
			const [lock] = (await createLocks(request())).entries;
			const seconds = (parseTime(lock.expiresAt) - serviceTime()) / 1000;
			announce(
				`${lock.serviceInstanceId} is locked for ${lock.owner}, for ${formatDuration(seconds)}.`,
			);
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			await showRefusal(error);
		}
		await refresh();
	}

	function showHints(message) {
		instance.showHint(namingHint(message, "instance"));
		owner.showHint(namingHint(message, "owner"));
	}

	async function showRefusal(error) {
		setAttribute(refusal, "aria-live", null);
		refusal.replaceChildren(el("p", error.message));
		refusal.hidden = false;
		showHints(error.message);
		const serviceInstanceIds = error.lockedInstances;
		if (!serviceInstanceIds.length) return;
		// If this fails, the message stays, and the refresh says what is wrong with the service.
		const answer = await queryLocks({ serviceInstanceIds }).catch(() => null);
		if (!answer) return;
		[inTheWay = null] = answer.entries;
		if (!inTheWay) {
			refusal.replaceChildren(el("p", "The lock that was in the way has just ended: try again."));
			return;
		}
		refusal.append(
			el("button", { onclick: () => showOnly(serviceInstanceIds) }, "Show only this lock"),
		);
		tick(serviceTime());
	}

	function showOnly(serviceInstanceIds) {
		const noFilters = Object.fromEntries(LOCKS.filters.map((it) => [it.name, null]));
		navigate({ ...noFilters, serviceInstanceIds: serviceInstanceIds.join(","), page: null });
	}

	/** Say how long the lock in the way is still held, until it has expired. */
	function tick(now) {
		if (!inTheWay) return;
		const { id, serviceInstanceId, temporary, expiresAt } = inTheWay;
		const seconds = Math.ceil((parseTime(expiresAt) - now) / 1000);
		if (seconds > 0) {
			const lock = `lock #${id}${temporary ? ", temporary" : ""}`;
			setText(
				refusal.firstChild,
				`Refused: ${inTheWay.owner} holds ${serviceInstanceId} for ${formatDuration(seconds)} more (${lock}).`,
			);
			setAttribute(refusal, "aria-live", "off"); // screen readers say it once, not every second
		} else {
			refusal.replaceChildren(el("p", `${serviceInstanceId} is free now: lock it.`));
			inTheWay = null;
		}
	}

	return {
		element: form,
		tick,
		/** The id of the lock because of which the last create was refused. */
		get lockInTheWay() {
			return inTheWay?.id;
		},
		suggest(entries) {
			instance.suggest(entries.map((it) => it.serviceInstanceId));
			owner.suggest(entries.map((it) => it.owner));
		},
	};
}

/** The field of a name, with suggestions and a hint at the naming convention. */
function nameField(name, label, placeholder) {
	const list = el("datalist", { id: `${name}s` });
	const hint = el("small", { id: `wrong-${name}` });
	const input = nameInput({ name, required: true, list: list.id, placeholder });
	return {
		element: labelled(label, input, hint, list),
		value: () => input.value.trim(),
		suggest: (values) => suggest(list, values),
		showHint(words) {
			setText(hint, words);
			setAttribute(input, "aria-invalid", words ? "true" : null);
			setAttribute(input, "aria-describedby", words ? hint.id : null);
		},
	};
}
