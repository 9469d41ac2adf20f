"use strict";
// Parts of the page. A text reaches it as `textContent` only, never as markup: a model or a person wrote it.

const at = id => document.getElementById(id);
function make(tag, className = "", text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
const percent = p => p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.000995 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "< 0.1 %" : "0 %";
const visible = name => name.replaceAll(" ", "\u2423").replaceAll("\n", "\u23ce").replace(/\p{C}/gu, c => `<U+${c.codePointAt(0).toString(16).toUpperCase()}>`) || "\u25cc";
const spoken = name => name.replaceAll("\n", "line break").trim() || "space";

// A bar of a share; `before` is a thin mark where it was.
function bar(share, before) {
  const track = make("span", "bar", "", { "aria-hidden": "true" }), fill = make("i");
  fill.style.width = `${100 * share}%`;
  track.append(fill);
  if (before !== undefined) {
    const mark = make("b");
    mark.style.left = `${100 * before}%`;
    track.append(mark);
  }
  return track;
}

// Moves the focus among the children of a group with arrow keys: one tab stop a group.
function roving(group, selector, step) {
  group.addEventListener("keydown", event => {
    const all = [...group.querySelectorAll(selector)], here = all.indexOf(event.target);
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -step(), ArrowDown: step(), Home: -here, End: all.length - 1 - here }[event.key];
    if (here < 0 || move === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const to = all[Math.max(0, Math.min(all.length - 1, here + move))];
    for (const one of all) one.tabIndex = one === to ? 0 : -1;
    to.focus();
  });
}

// The text as tokens, [{id, given}], in cards that end after a token of `isEnd`; before it the texts of the source's tokens.
function textView({ source, tokens, pieces, names, isEnd, choose }) {
  const cards = [];
  let card = null;
  if (source.length) {
    cards.push(make("div", "card text"));
    cards[0].append(make("span", "token mark", "source"));
    source.forEach((text, s) => cards[0].append(make("span", "token source", text, { "data-s": s })));
  }
  const add = (n, className, text, label) => {
    const span = make("span", `token ${className}`, text, { role: "button", tabindex: "-1", "data-n": n, "aria-label": label });
    span.addEventListener("click", () => span.focus());
    span.addEventListener("focus", () => choose(n));
    card.append(span);
  };
  tokens.forEach((token, n) => {
    if (!card) cards.push(card = make("div", "card text"));
    const end = n > 0 && isEnd(token.id);
    if (n === 0) card.append(make("span", "token mark", "start", { "data-n": 0, title: "the token before every text" }));
    else add(n, end ? "mark" : token.given ? "given" : "written", end ? "end" : pieces[n] || "\u25cc", `token ${n}: ${spoken(names[n])}`);
    if (end) card = null;
  });
  if (!card) cards.push(card = make("div", "card text"));
  add(tokens.length, "next", "", "the next token");
  return cards;
}

// The likeliest tokens now, and where they were: [{id, name, now, before, here}].
function distributionView(rows, choose) {
  return rows.map(({ id, name, now, before, here }) => {
    const item = make("li"), button = make("button", here ? "choice here" : "choice", "", { type: "button" });
    const label = `${spoken(name)}, ${percent(now)}, before ${percent(before)}${here ? ", in the text" : ""}`;
    button.setAttribute("aria-label", label);
    button.append(make("span", "name", visible(name)), bar(now, before), make("span", "share", percent(now)));
    button.addEventListener("click", () => choose(id));
    item.append(button);
    return item;
  });
}

// The name of a part of the model, such as "2.0"; see `newReading` in network.js.
function partName(part) {
  const [, encoder, layer, cross, head, rest] = part.match(/^(e?)(\d+)(?:\.(x?)(?:(\d+)|(.*)))?$/);
  const place = `${encoder ? "encoder " : ""}layer ${Number(layer) + 1}`;
  if (rest) return `${rest.replace("_", "-")} of ${place}`;
  return head === undefined ? place : `${cross ? "source " : ""}head ${Number(head) + 1} of ${place}`;
}

// Layers and heads as a grid: a head is looked at, and what is selected can be taken out.
function partsView({ layers, encoderLayers, heads, selected, off, select }) {
  const stack = (count, prefix, label, kinds) => Array.from({ length: count }, (_, i) => {
    const key = `${prefix}${count - 1 - i}`, row = make("div", "parts", "", { role: "row" });
    const add = (part, text, className) => {
      const gone = off.has(part) || off.has(key), name = partName(part);
      const button = make("button", `part ${className}${gone ? " off" : ""}`, text, { type: "button", role: "gridcell", "data-part": part });
      button.setAttribute("aria-label", gone ? `${name}, taken out` : name);
      button.setAttribute("aria-selected", String(part === selected));
      button.tabIndex = part === selected ? 0 : -1;
      button.addEventListener("click", () => select(part));
      row.append(button);
    };
    add(key, `${label} ${count - i}`, "layer");
    for (const kind of kinds) for (let h = 0; h < heads; h++) add(`${key}.${kind}${h}`, String(h + 1), kind ? "head cross" : "head");
    add(`${key}.feed_forward`, "feed-forward", "ff");
    return row;
  });
  return [...stack(layers, "", "Layer", encoderLayers ? ["", "x"] : [""]), ...stack(encoderLayers, "e", "Encoder", [""])];
}

// What each layer would say next: [{best, bestChance, chance}], the embedding first.
function lensView(rows, nameOf) {
  return rows.map(({ best, bestChance, chance }, layer) => {
    const row = make("tr");
    const share = make("td", "wide");
    share.append(bar(chance), make("span", "share", percent(chance)));
    row.append(make("th", "", layer ? `Layer ${layer}` : "Embedding", { scope: "row" }),
      make("td", "name", visible(nameOf(best))), make("td", "share", percent(bestChance)), share);
    return row;
  }).reverse();
}

// The tokens that a head attends to most: [{name, weight}].
function attentionView(rows) {
  return rows.map(({ name, weight }) => {
    const item = make("li", "seen");
    item.append(make("span", "name", visible(name)), bar(weight), make("span", "share", percent(weight)));
    return item;
  });
}
