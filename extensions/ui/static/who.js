// Who is asking: shown at the top right, and changed in a dialog.

import { el, text } from "./dom.js";
import { dialog } from "./frame.js";
import { unsee } from "./filters.js";
import { forget } from "./memory.js";
import { about, identity, logIn, Refusal, who } from "./service.js";

const place = document.getElementById("who-name");
let known = ""; // what has been asked about

/** Show who the service takes this tab for. */
export async function showWho() {
  if (about.authenticationPolicy === "declared") return text(place, identity.value || "nobody");
  const key = `${about.authenticationPolicy} ${identity.value}`;
  if (known === key) return;
  known = key;
  try {
    const { name, operator } = await who();
    text(place, operator ? `${name}, operator` : name);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    text(place, "nobody");
    known = error.away ? "" : key;
  }
}

/** Let the person say who they are; `changed` is called once they have. */
export function askWho(changed) {
  const said = el("p", { role: "alert", class: "refused" });
  const close = el("button", { onclick: () => box.close() }, "Close");
  const take = (value) => {
    identity.value = value;
    known = "";
    forget();
    unsee();
    box.close();
    changed();
  };
  const parts = { declared, outsourced, certificate }[about.authenticationPolicy]?.(take, said, close);
  const box = dialog("Who am I", ...(parts ?? [el("p", {}, "The service has not told yet how requesters prove who they are."), close]));
  box.showModal();
}

function declared(take, said, close) {
  const name = el("input", { name: "name", required: true, autocomplete: "off", spellcheck: "false", value: identity.value });
  return [
    el("p", {}, "The policy is ", el("code", {}, "declared"), ": the service believes the name that you give, and verifies nothing. ",
      el("strong", {}, "Sysop"), " is the operator; with any other name you see what an ordinary system is told."),
    form([field("My name", name)], said, close, "Use this name", () => {
      if (/^[\x20-\x7e]+$/.test(name.value)) take(name.value.trim());
      else text(said, "A name has ASCII letters and digits.");
    }),
  ];
}

function outsourced(take, said, close) {
  const token = el("input", { name: "token", type: "password", required: true, autocomplete: "off", spellcheck: "false" });
  const parts = [
    el("p", {}, "The policy is ", el("code", {}, "outsourced"), ": the cloud's identity service vouches for you. What you give is kept for this tab only."),
    form([field("My token", token)], said, about.identityUrl ? null : close, "Use this token", () => {
      if (/^[\x21-\x7e]+$/.test(token.value.trim())) take(token.value.trim());
      else text(said, "A token has no spaces, and ASCII characters only.");
    }),
  ];
  if (!about.identityUrl) {
    return [...parts, el("p", { class: "quiet" }, "A login from here is not offered: the address of the identity service is not https, so a password could be read on its way.")];
  }
  const name = el("input", { name: "system", required: true, autocomplete: "username" });
  const password = el("input", { name: "password", type: "password", required: true, autocomplete: "current-password" });
  const failed = el("p", { role: "alert", class: "refused" });
  return [...parts, el("h3", {}, "Or log in"),
    el("p", { class: "quiet" }, `At ${about.identityUrl}: the password goes there and nowhere else.`),
    form([field("System", name), field("Password", password)], failed, close, "Log in", async () => {
      text(failed, "");
      try {
        const { token } = await logIn(name.value.trim(), password.value);
        take(token);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        text(failed, error.status
          ? `The identity service refuses: ${error.message}`
          : "The identity service cannot be reached from this page. Perhaps it is away, or it does not let pages of other addresses ask (CORS): then log in elsewhere, and give the token.");
      }
    })];
}

function certificate(take, said, close) {
  const words = el("p", { role: "status" }, "Asking …");
  who().then(
    ({ name, operator }) => text(words, `Your certificate names ${name}, ${operator ? "an operator of this cloud" : "a system of this cloud"}.`),
    (error) => text(words, `The service says: ${error.message}.`),
  );
  return [
    el("p", {}, "The policy is ", el("code", {}, "certificate"), ": the proxy verifies your browser's certificate, and hands on what it says."),
    words,
    el("p", { class: "quiet" }, "To be somebody else, choose another certificate in your browser."),
    el("div", { class: "buttons" }, close),
  ];
}

function field(label, input) {
  return el("label", { class: "field" }, el("span", {}, label), input);
}

function form(fields, said, close, title, submit) {
  const element = el("form", {}, ...fields, said, el("div", { class: "buttons" }, close, el("button", { type: "submit", class: "main" }, title)));
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  return element;
}
