"use strict";
// The state of the page, and what a person does to it.

const model = JSON.parse(at("model").textContent), CHOICES = 10, SEEN = 6, NONE = new Set();
const tokenizer = makeTokenizer(model.vocabulary, model.utf8);
const products = makeProducts(model.arrays.filter(({ scales }) => scales !== undefined));
const weights = readWeights(model.arrays, unpack(at("weights").textContent, model.bytes), products.matrix);
const network = makeNetwork(model.config, weights, products.product);
const session = makeSession(model, tokenizer, network);
at("weights").remove();
const { bos } = model.vocabulary, { stop } = session;
const TASKS = {
  write: { verb: "Write", placeholder: model.prompt || "In the beginning" },
  chat: { verb: "Send", placeholder: "Say something" },
  translate: { verb: "Translate", placeholder: model.prompt || "In the beginning" },
};

const page = { source: [], tokens: [], selected: 1, part: `${network.layers - 1}.${session.translates ? "x" : ""}0`, off: new Set(), past: [], writing: null, painting: 0 };
const task = () => session.translates ? "translate" : document.querySelector("input[name=mode]:checked").value;
const keepsEnd = () => task() !== "write";   // a text that ends stays open to be written on
const given = ids => ids.map(id => ({ id, given: true }));
const ids = () => page.tokens.map(token => token.id);
const pause = () => new Promise(resolve => { const { port1, port2 } = new MessageChannel(); port1.onmessage = () => { port1.close(); resolve(); }; port2.postMessage(0); });
const number = id => Number(at(id).value);

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

function settings() {
  const seed = at("seed").value.trim() === "" ? Math.floor(Math.random() * 2 ** 31) : number("seed");
  return { ...model.sampling, temperature: number("temperature"), top_p: number("top_p") || 1, max_tokens: Math.max(1, number("max_tokens")), seed };
}

// --- The text

function showText() {
  const all = ids();
  at("log").replaceChildren(...textView({
    source: tokenizer.pieces(page.source), tokens: page.tokens, pieces: tokenizer.pieces(all), names: all.map(tokenizer.name), isEnd: id => stop.includes(id), choose: select,
  }));
  paint();
}

// Shows the selection, how surprising each token was or how much it is attended to, and what left the context.
function paint() {
  const shading = at("shading").value, forgotten = session.windowStart(page.selected);
  const { start, weights, cross } = shading === "attention" && canLook(page.part) ? lookedAt() : { start: 0, weights: [], cross: false };
  for (const span of document.querySelectorAll("#log .source")) {
    span.style.setProperty("--shade", cross ? weights[span.dataset.s].toFixed(3) : 0);
    span.classList.add("attended");
  }
  for (const span of document.querySelectorAll("#log .token[data-n]")) {
    const n = Number(span.dataset.n), chance = page.tokens[n]?.chance;
    const shade = shading === "attention" ? !cross && weights[n - start] || 0 : shading === "surprise" && n && chance > 0 ? Math.min(1, -Math.log(chance) / 7) : 0;
    span.style.setProperty("--shade", shade.toFixed(3));
    span.classList.toggle("attended", shading === "attention");
    span.classList.toggle("forgotten", n < forgotten);
    if (n) span.tabIndex = n === page.selected ? 0 : -1;
    if (n && n === page.selected) span.setAttribute("aria-current", "true");
    else span.removeAttribute("aria-current");
  }
}

// Measures the surprise of tokens that have none yet, a few at a time.
async function measure() {
  const turn = ++page.painting;
  let since = performance.now();
  for (let n = 1; n < page.tokens.length; n++) {
    if (page.tokens[n].chance !== undefined) continue;
    const all = ids();
    page.tokens[n].chance = session.chances(all, n, page.off)[all[n]];
    if (performance.now() - since < 24) continue;
    await pause();
    if (turn !== page.painting || page.writing) return;
    since = performance.now();
  }
  paint();
}

const remember = () => page.past.push({ source: page.source, tokens: page.tokens, selected: page.selected });

// Takes another text; `from` is its first token that differs or whose past does.
function change(tokens, from, selected, source = page.source) {
  remember();
  page.source = source;
  session.setSource(source);
  page.tokens = tokens.map((token, n) => n < from ? token : { ...token, chance: undefined });
  page.selected = selected;
  showAll();
}

function showAll() {
  showText();
  showPrediction();
  at("undo").disabled = !page.past.length || page.writing;
  at("more").disabled = page.writing || (keepsEnd() && stop.includes(page.tokens.at(-1).id));
  if (!page.writing) measure();
}

const follow = () => { at("log").scrollTop = at("log").scrollHeight; };

// A list that was made anew has lost the focus.
function focusSelected() {
  if (document.activeElement === document.body) document.querySelector("#log [aria-current]").focus({ preventScroll: true });
}

function select(n) {
  if (n === page.selected) return;
  page.selected = n;
  paint();
  showPrediction();
}

// --- What the model computes at the selected position

// Where the selected head looks, which is one of the decoder.
const HEAD = /^(\d+)\.(x?)(\d+)$/, canLook = part => HEAD.test(part);
function lookedAt() {
  const [, layer, cross, head] = page.part.match(HEAD);
  return { cross: Boolean(cross), ...session.attentionAt(ids(), page.selected, page.off, { layer, head: Number(head), cross }) };
}

function showPrediction() {
  const all = ids(), n = page.selected, here = all[n], temperature = number("temperature");
  const now = session.probabilities(all, n, page.off, { temperature });
  const before = session.probabilities(all, n, NONE, { temperature: 1 });
  const order = Array.from(now.keys()).sort((a, b) => Math.max(now[b], before[b]) - Math.max(now[a], before[a]) || a - b).slice(0, CHOICES);
  if (here !== undefined && !order.includes(here)) order.push(here);
  order.sort((a, b) => now[b] - now[a] || before[b] - before[a]);
  const rows = order.map(id => ({ id, name: tokenizer.name(id), now: now[id], before: before[id], here: id === here }));
  at("choices").replaceChildren(...distributionView(rows, id => choose([id])));
  at("next-title").textContent = here === undefined ? "The next token" : `Instead of ${visible(tokenizer.name(here))}`;
  const moved = now.reduce((sum, p, id) => sum + Math.abs(p - before[id]), 0) / 2;
  at("moved").textContent = moved < 5e-4 ? "This is the whole model at temperature 1."
    : !page.off.size ? "The thin marks are the same at temperature 1."
    : `Compared with the whole model at temperature 1 (the thin marks), ${percent(moved)} of the probability has moved.`;
  at("degrees").textContent = temperature.toFixed(2);
  const token = here ?? order[0];
  at("lens").replaceChildren(...lensView(session.lensAt(all, n, page.off, token), tokenizer.name));
  at("lens-token").textContent = `chance of ${visible(tokenizer.name(token))}`;
  showParts();
}

function showParts() {
  const gone = page.off.has(page.part), name = partName(page.part), focused = document.activeElement?.dataset.part;
  at("parts").replaceChildren(...partsView({ ...network, selected: page.part, off: page.off, select: selectPart }));
  if (focused) document.querySelector(`[data-part="${page.part}"]`).focus();
  at("take").textContent = `${gone ? "Put back" : "Take out"} ${name}`;
  at("restore").disabled = !page.off.size;
  at("attention-title").textContent = canLook(page.part) ? `Where ${name} looks` : "";
  if (!canLook(page.part)) return at("attention").replaceChildren();
  const { start, weights, cross } = lookedAt(), seen = cross ? page.source : ids();
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, SEEN);
  const nameOf = s => !cross && s === 0 ? "start" : tokenizer.name(seen[s]);
  at("attention").replaceChildren(...attentionView(order.map(s => ({ name: nameOf(start + s), weight: weights[s] }))));
}

function selectPart(part) {
  page.part = part;
  if (canLook(part)) at("shading").value = "attention";
  showParts();
  paint();
}

function takeOut(off) {
  page.off = off;
  for (const token of page.tokens) token.chance = undefined;
  showPrediction();
  paint();
  measure();
}

// --- Writing

async function write(count, sampling) {
  const from = page.tokens.length, begun = performance.now(), room = { write: count, chat: network.context - from + 1, translate: network.longest - from };
  const most = Math.min(count, room[task()]);
  let all = ids(), shown = begun, ended = false;
  const mine = page.writing = {};
  at("send").textContent = "Stop";
  at("more").disabled = at("undo").disabled = true;
  for (let i = 0; i < most && page.writing === mine; i++) {
    const { id, chance } = session.drawAt(all, all.length, page.off, sampling);
    ended = stop.includes(id);
    if (!ended || keepsEnd()) {
      page.tokens = [...page.tokens, { id, given: false, chance }];
      all = [...all, id];
    }
    if (ended) break;
    if (performance.now() - shown < 100) continue;
    page.selected = all.length;
    showText();
    follow();
    say(`writing, ${all.length - from} tokens`);
    await pause();
    shown = performance.now();
  }
  if (page.writing && page.writing !== mine) return;
  const written = all.length - from, seconds = (performance.now() - begun) / 1000;
  page.writing = null;
  page.selected = page.tokens.length;
  at("send").textContent = TASKS[task()].verb;
  showAll();
  follow();
  focusSelected();
  say(`${written} tokens, ${(written / seconds).toFixed(0)} tokens/s${ended ? "; the model ended the text" : ""}`);
}

// Puts tokens at the selected position: what follows stays, or is written anew.
function choose(some) {
  const n = page.selected, rest = page.tokens.slice(n + 1), branch = document.querySelector("input[name=effect]:checked").value === "branch";
  if (page.writing || !some.length) return;
  const start = [...page.tokens.slice(0, n), ...given(some)];
  if (session.translates && start.length + rest.length > network.longest) return say(`A translation has at most ${network.longest} tokens.`, true);
  if (n === page.tokens.length || !branch) {
    change([...start, ...rest], n, n === page.tokens.length ? start.length : n);
    focusSelected();
    return;
  }
  change(start, n, start.length);
  write(Math.max(1, rest.length), settings());
}

async function submit() {
  if (page.writing) return void (page.writing = null);
  const sampling = settings(), text = at("prompt").value || (task() === "chat" ? "" : at("prompt").placeholder);
  let start = given([bos]), source = [], note = "", count = sampling.max_tokens;
  if (task() !== "write" && !text.trim()) return;
  if (task() === "chat") {
    const messages = page.tokens.length > 1 ? session.messagesOf(ids()) : [];
    const trimmed = session.trimConversation([...messages, { role: "user", content: text }], count);
    start = trimmed.tokens;
    if (trimmed.dropped) note = `The context of ${network.context} tokens is full: the ${trimmed.dropped} oldest messages are dropped.`;
  } else if (task() === "translate") {
    source = session.encodeSource(text);
    count += source.length - 1;
  } else {
    start = given([bos, ...tokenizer.encode(text)]);
  }
  if (start.length > network.context) {
    return say(`That is ${start.length - 1} tokens long, and the context of this model holds ${network.context - 1}: shorten it.`, true);
  }
  if (task() === "chat") at("prompt").value = "";
  change(start, 0, start.length, source);
  await write(count, sampling);
  if (note) say(note);
}

// --- Events

at("ask").addEventListener("submit", event => { event.preventDefault(); submit(); });
at("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
at("more").addEventListener("click", () => { const sampling = settings(); remember(); write(sampling.max_tokens, sampling); });
at("undo").addEventListener("click", () => {
  const { source, tokens, selected } = page.past.pop();
  Object.assign(page, { source, tokens: tokens.map(token => ({ ...token, chance: undefined })), selected });
  session.setSource(source);
  showAll();
});
at("other").addEventListener("submit", event => {
  event.preventDefault();
  const text = at("instead").value;
  at("instead").value = "";
  choose(tokenizer.encode(text));
});
at("temperature").addEventListener("input", showPrediction);
at("shading").addEventListener("change", paint);
at("take").addEventListener("click", () => {
  const off = new Set(page.off);
  if (!off.delete(page.part)) off.add(page.part);
  takeOut(off);
});
at("restore").addEventListener("click", () => takeOut(new Set()));
for (const mode of document.querySelectorAll("input[name=mode]")) mode.addEventListener("change", begin);
roving(at("log"), ".token[role=button]", () => 1);
roving(at("parts"), ".part", () => document.querySelector(".parts").children.length);
at("log").addEventListener("keydown", event => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); document.querySelector("#choices button").focus(); }
});

// --- The beginning

function begin() {
  const { verb, placeholder } = TASKS[task()];
  at("send").textContent = verb;
  at("prompt").placeholder = placeholder;
  const start = task() === "write" ? tokenizer.encode(placeholder) : [];
  Object.assign(page, { writing: null, past: [], tokens: given([bos, ...start].slice(0, network.context)) });
  page.source = task() === "translate" ? session.encodeSource(placeholder) : [];
  session.setSource(page.source);
  page.selected = page.tokens.length;
  showAll();
  say("Choose a token to see what else could stand there");
}

function about() {
  const { config, agreement, bpb, step } = model;
  at("facts").textContent = [
    `${model.parameters.toLocaleString("en")} parameters`, `${config.encoder_layers ? `${config.encoder_layers} + ` : ""}${config.num_layers} layers of ${config.num_heads} heads`,
    `context ${config.max_length} tokens`, step ? `trained on ${model.corpus} for ${step.toLocaleString("en")} steps` : "imported",
    ...bpb === null ? [] : [`${bpb.toFixed(4)} bits per byte`],
  ].join(" \u00b7 ");
  const share = agreement && Math.floor(1000 * agreement.same / agreement.positions) / 10;
  at("about").textContent = "The model runs in this page: no network, no server. Its weights have 8 bits and a scale for each row. " + (agreement
    ? `In ${share.toFixed(1)} % of ${agreement.positions.toLocaleString("en")} held-out positions its likeliest token is that of the float32 model.`
    : "How often its likeliest token is that of the float32 model was not measured: the held-out text was not there.");
  for (const name of ["temperature", "top_p", "max_tokens"]) at(name).value = model.sampling[name];
  if (session.translates) at("temperature").value = 0;   // a translation is not drawn
  at("kinds").hidden = !session.translates;
  at("seed").placeholder = "any";
  at("modes").hidden = !model.roles;
  document.querySelector(`input[name=mode][value=${model.roles ? "chat" : "write"}]`).checked = true;
}
about();
begin();
