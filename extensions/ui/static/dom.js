// Helpers for elements. A text is only ever added as text: nothing is parsed as HTML.

/**
 * Make an element: el("p.note", { onclick: f }, "text", child). It may have classes after its name,
 * and attributes before its children. A button submits its form only if its type says so.
 */
export function el(selector, ...children) {
	const [name, ...classes] = selector.split(".");
	const element = document.createElement(name);
	element.classList.add(...classes);
	if (name === "button") element.type = "button";
	const attributes = children[0]?.constructor === Object ? children.shift() : {};
	for (const [key, value] of Object.entries(attributes)) {
		if (value === undefined || value === null || value === false) continue;
		if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
		else element.setAttribute(key, value === true ? "" : value);
	}
	element.append(...children);
	return element;
}

/** An input for names, which the browser neither completes nor corrects. */
export function nameInput(attributes) {
	return el("input", { autocomplete: "off", spellcheck: "false", ...attributes });
}

export function labelled(label, ...children) {
	return el("label.field", el("span", label), ...children);
}

/** Set a text only if it changes: an unchanged one costs no layout. */
export function setText(element, value) {
	if (element.textContent !== value) element.textContent = value;
}

/** Set an attribute only if it changes; null removes it. */
export function setAttribute(element, name, value) {
	if (value === null) element.removeAttribute(name);
	else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/**
 * Make the children of `parent` match `entries`. The element of a key is kept, and with it focus,
 * selection and whatever is open in it.
 */
export function reconcile(parent, entries, keyOf, create, update) {
	const focused = parent.contains(document.activeElement) ? document.activeElement : null;
	const focusedRow = focused ? [...parent.children].findIndex((it) => it.contains(focused)) : -1;
	const unused = new Map([...parent.children].map((it) => [it.dataset.key, it]));
	const wanted = entries.map((entry) => {
		const key = String(keyOf(entry));
		let element = unused.get(key);
		if (!element) {
			element = create(entry);
			element.dataset.key = key;
		}
		unused.delete(key);
		update?.(element, entry);
		return element;
	});
	for (const element of unused.values()) element.remove();
	wanted.forEach((element, position) => {
		const current = parent.children[position];
		if (current !== element) parent.insertBefore(element, current ?? null);
	});
	if (focused && document.activeElement !== focused) {
		if (focused.isConnected) focused.focus({ preventScroll: true });
		else focusRow(parent, focusedRow);
	}
}

/** Focus the row at `index`, or the last one; the table if there is none. */
export function focusRow(parent, index) {
	const row = parent.children[Math.min(index, parent.children.length - 1)];
	const target = row?.querySelector("button, a[href], input") ?? parent.closest("[tabindex]");
	target?.focus({ preventScroll: true });
}

/** A button that unfolds its form on a narrow screen. */
export function foldButton(title) {
	const unfold = ({ currentTarget: button }) => {
		const unfolded = button.form.classList.toggle("unfolded");
		setAttribute(button, "aria-expanded", String(unfolded));
	};
	return el("button.fold", { "aria-expanded": "false", onclick: unfold }, title);
}

export function announce(words) {
	const place = document.getElementById("announcement");
	place.textContent = words;
	clearTimeout(announce.timer);
	announce.timer = setTimeout(() => (place.textContent = ""), 6000);
}
