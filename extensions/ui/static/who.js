// Who is asking: shown at the top right, and changed in a dialog.

import { el, labelled, nameInput, setText } from "./dom.js";
import { forgetValues } from "./filters.js";
import { forgetLocks } from "./memory.js";
import { identity, logIn, Refusal, serviceInfo, whoAmI } from "./service.js";
import { dialog, form } from "./widgets.js";

const place = document.getElementById("who-name");
const NO_LOGIN =
	"You cannot log in here: the identity service's address is not https, so others could read " +
	"your password.";
const UNREACHABLE =
	"This page cannot reach the identity service. It may be down, or it does not allow requests " +
	"from this page (CORS). Then log in elsewhere, and enter the token.";

let shownFor = ""; // the policy and the identity whose name is shown

export async function showWho() {
	const policy = serviceInfo.authenticationPolicy;
	if (policy === "declared") return setText(place, identity.value || "nobody");
	const key = `${policy} ${identity.value}`;
	if (shownFor === key) return;
	shownFor = key;
	try {
		const { name, operator } = await whoAmI();
		setText(place, operator ? `${name}, operator` : name);
	} catch (error) {
		if (!(error instanceof Refusal)) throw error;
		setText(place, "nobody");
		if (error.unavailable) shownFor = "";
	}
}

export function askWho(changed) {
	const policy = serviceInfo.authenticationPolicy;
	const content = { declared, outsourced, certificate }[policy];
	if (!content) return; // the service has not answered yet
	const use = (value) => {
		identity.value = value;
		shownFor = "";
		forgetLocks();
		forgetValues();
		box.close();
		changed();
	};
	const intro = el("p", "The authentication policy is ", el("code", policy), ".");
	const box = dialog("Who am I", intro, ...content(use));
	const close = el("button", { onclick: () => box.close() }, "Close");
	[...box.querySelectorAll(".buttons")].at(-1).prepend(close);
	box.showModal();
}

function declared(use) {
	const name = nameInput({ name: "name", required: true, value: identity.value });
	const submit = () => {
		if (!/^[\x20-\x7e]+$/.test(name.value)) return "A name has ASCII letters and digits.";
		return use(name.value.trim());
	};
	return [
		el(
			"p",
			"The service believes the name that you enter, and verifies nothing. ",
			el("strong", "Sysop"),
			" is the operator; under another name you see what a system sees.",
		),
		form([labelled("My name", name)], "Use this name", submit),
	];
}

function outsourced(use) {
	const token = nameInput({ name: "token", type: "password", required: true });
	const submit = () => {
		const value = token.value.trim();
		if (!/^[\x21-\x7e]+$/.test(value)) return "A token has ASCII characters only, and no spaces.";
		return use(value);
	};
	return [
		el(
			"p",
			"The cloud's identity service confirms who you are. The token is kept for this tab only.",
		),
		form([labelled("My token", token)], "Use this token", submit),
		...(serviceInfo.identityUrl ? login(use) : [el("p.quiet", NO_LOGIN)]),
	];
}

function login(use) {
	const name = el("input", { name: "system", required: true, autocomplete: "username" });
	const password = el("input", {
		name: "password",
		type: "password",
		required: true,
		autocomplete: "current-password",
	});
	const submit = async () => {
		try {
			const { token } = await logIn(name.value.trim(), password.value);
			return use(token);
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			return error.status ? `The identity service refuses: ${error.message}` : UNREACHABLE;
		}
	};
	return [
		el("h3", "Or log in"),
		el("p.quiet", `The password is sent only to ${serviceInfo.identityUrl}.`),
		form([labelled("System", name), labelled("Password", password)], "Log in", submit),
	];
}

function certificate() {
	const words = el("p", { role: "status" }, "Asking …");
	const kind = (operator) => (operator ? "an operator of this cloud" : "a system of this cloud");
	whoAmI().then(
		({ name, operator }) => setText(words, `Your certificate names ${name}, ${kind(operator)}.`),
		(error) => setText(words, `The service says: ${error.message}.`),
	);
	return [
		el("p", "The proxy verifies your browser's certificate, and passes on what it says."),
		words,
		el("p.quiet", "To be somebody else, choose another certificate in your browser."),
		el("div.buttons"),
	];
}
