"use strict";
// What the page asks of the model about a list of ids. Position n is that of the token after the first n ids.

function makeSession(model, tokenizer, network) {
  const { vocabulary, roles } = model, C = network.context, half = Math.max(1, C >> 1), translates = network.encoderLayers > 0;
  const stop = translates ? [vocabulary.eos] : vocabulary.stop, excluded = translates ? [vocabulary.pad, vocabulary.bos] : [];

  // A decoder reads at most C tokens: when the context is full, its last half is read again.
  const windowStart = n => translates || n <= C ? 0 : Math.ceil((n - C) / (C + 1 - half)) * (C + 1 - half);

  // One reading of the whole model, and one of the model without the parts that are taken out.
  const readings = { whole: network.newReading(), changed: network.newReading() };
  let source = [];   // the ids of the text to translate
  function readingAt(ids, n, off) {
    const start = windowStart(n), reading = off.size ? readings.changed : readings.whole;
    return { start, at: n - 1 - start, reading: network.read(reading, ids.slice(start, start + network.longest), off, source) };
  }

  function logitsAt(ids, n, off, layer) {
    const { reading, at } = readingAt(ids, n, off);
    return network.logits(reading, at, layer);
  }

  // Probabilities of the token at position n, among those that continue valid UTF-8.
  function sampled(logits, ids, n, sampling) {
    const state = tokenizer.stateAfter(ids.slice(Math.max(0, n - 8), n));
    return distribution(logits, sampling, id => tokenizer.nextState(state, id) >= 0 && !excluded.includes(id), tokenizer.size);
  }
  const probabilities = (ids, n, off, sampling) => sampled(logitsAt(ids, n, off), ids, n, sampling);

  // Softmax of the logits: what the model says without a temperature.
  const soft = logits => softmax(Float64Array.from(logits.subarray(0, tokenizer.size)), 0, tokenizer.size);
  const chances = (ids, n, off, layer) => soft(logitsAt(ids, n, off, layer));

  // The token drawn at position n, and its chance without a temperature.
  function drawAt(ids, n, off, sampling) {
    const logits = logitsAt(ids, n, off), id = draw(sampled(logits, ids, n, sampling), uniform(sampling.seed, n));
    return { id, chance: soft(logits)[id] };
  }

  // How much the last token before position n attends to each one: {weights, start}, of the source in a `cross` head.
  function attentionAt(ids, n, off, { layer, head, cross }) {
    const { reading, at, start } = readingAt(ids, n, off), { self, cross: other } = reading.layers[layer];
    return { start: cross ? 0 : start, weights: network.weightsOf(cross ? other : self, head, at) };
  }

  // Logit lens (nostalgebraist 2020): the final norm and the head on the state after each layer.
  function lensAt(ids, n, off, token) {
    return Array.from({ length: network.layers + 1 }, (_, layer) => {
      const p = chances(ids, n, off, layer), best = p.reduce((most, value, id) => value > p[most] ? id : most, 0);
      return { best, bestChance: p[best], chance: p[token] };
    });
  }

  // A text to translate, after a space and at most as long as the context.
  const encodeSource = text => [...tokenizer.encode(` ${stripped(text)}`).slice(0, C - 1), vocabulary.eos];

  // --- Conversations, as zerotollm/data/tokens/conversations.py writes them

  const SPACE = "\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";   // Python's str.strip
  const stripped = text => text.replace(new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, "g"), "");

  // The tokens up to the next answer, [{id, given}]: answers are not given.
  function encodeConversation(messages) {
    const tokens = [], add = (ids, given = true) => tokens.push(...ids.map(id => ({ id, given }))), end = [vocabulary.stop[0]];
    add([vocabulary.bos]);
    for (const { role, content } of messages) {
      const text = ` ${stripped(content)}`;
      if (role !== "assistant") add([...tokenizer.encode(roles[role] + text), ...end]);
      else { add(tokenizer.encode(roles.assistant)); add([...tokenizer.encode(text), ...end], false); }
    }
    add(tokenizer.encode(roles.assistant));
    return tokens;
  }

  // The messages that ids hold: each ends with the token that ends a text.
  function messagesOf(ids) {
    const messages = [];
    for (let from = 1, to; from < ids.length; from = to + 1) {
      to = ids.indexOf(vocabulary.stop[0], from);
      if (to < 0) to = ids.length;
      const text = tokenizer.decode(ids.slice(from, to));
      const role = Object.keys(roles).find(name => text.startsWith(roles[name]));
      if (role) messages.push({ role, content: stripped(text.slice(roles[role].length)) });
    }
    return messages;
  }

  // The prompt of a conversation that leaves room for an answer, without the oldest turns where it is too long.
  function trimConversation(messages, maxTokens) {
    const room = Math.min(maxTokens, Math.max(1, C >> 2));
    for (let turns = messages; ;) {
      const tokens = encodeConversation(turns);
      if (tokens.length <= C - room || turns.length < 2) return { tokens, dropped: messages.length - turns.length };
      turns = turns.slice(turns.length > 2 && turns[1].role === "assistant" ? 2 : 1);
    }
  }

  return { translates, stop, setSource: ids => { source = ids; }, encodeSource, windowStart, probabilities, chances, drawAt, attentionAt, lensAt, messagesOf, trimConversation };
}
