// Elements made of data. Text is only ever text here: nothing is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: el("p", {class: "note", onclick: f}, "text", child). A button submits only if told. */
export function el(name, attributes, ...children) {
  const usual = name === "button" ? { type: "button" } : {};
  return filled(document.createElement(name), { ...usual, ...attributes }, children);
}

/** The same for a part of a drawing. */
export function svg(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((it) => it !== null && it !== undefined));
  return element;
}

/** Set a text, an attribute or a class only where it changes: what stays costs no layout. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function attribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/**
 * Bring the children of `parent` to the order of `entries`, keeping the element of each key, and
 * with it focus, selection and what is open.
 */
export function reconcile(parent, entries, keyOf, make, update) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const index = focused ? [...parent.children].findIndex((it) => it.contains(focused)) : -1;
  const there = new Map([...parent.children].map((it) => [it.dataset.key, it]));
  const wanted = entries.map((entry) => {
    const key = String(keyOf(entry));
    let element = there.get(key);
    if (!element) {
      element = make(entry);
      element.dataset.key = key;
    }
    there.delete(key);
    update(element, entry);
    return element;
  });
  for (const gone of there.values()) gone.remove();
  wanted.forEach((element, position) => {
    const present = parent.children[position];
    if (present !== element) parent.insertBefore(element, present ?? null);
  });
  if (focused && document.activeElement !== focused) {
    if (focused.isConnected) focused.focus({ preventScroll: true });
    else refocus(parent, index);
  }
}

/** Where the focus goes when its row is gone: the row that took its place, else the table. */
export function refocus(parent, index) {
  const row = parent.children[Math.min(index, parent.children.length - 1)];
  const target = row?.querySelector("button, a[href], input") ?? parent.closest("[tabindex]");
  target?.focus({ preventScroll: true });
}

/** The button that unfolds the form in which it stands, where the screen is narrow. */
export function folder(title) {
  return el("button", { class: "fold", "aria-expanded": "false", onclick: ({ currentTarget: it }) =>
    attribute(it, "aria-expanded", String(it.form.classList.toggle("unfolded"))) }, title);
}

/** Say something to a screen reader, and show it for a while. */
export function announce(words) {
  const place = document.getElementById("announcement");
  place.textContent = words;
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => (place.textContent = ""), 6000);
}
