"use strict";
// Text to tokens and back, with the ids of the Python tokenizer for any text.

const WORDS = /\n|\u2581| *[^ \n\u2581]+| +/gu;   // no token spans two words; U+2581 is a word of its own
const utf8 = new TextEncoder();

// `model.vocabulary` is the JSON of zerotollm/programs/vocabulary.py.
function makeTokenizer(vocabulary, utf8States) {
  const { tokens, scores, unk, kind } = vocabulary;
  const ids = new Map(), scoreOf = new Map();
  let longest = 1;   // characters of a token
  tokens.forEach((token, i) => {
    if (typeof token !== "string" || i === unk) return;
    ids.set(token, i);
    if (!scores) return;
    scoreOf.set(token, scores[i]);
    longest = Math.max(longest, [...token].length);
  });
  const bytesOf = tokens.map(t => Array.isArray(t) ? Uint8Array.from(t) : utf8.encode(t ?? ""));
  const byteIds = text => Array.from(utf8.encode(text), byte => vocabulary.bytes[byte]);

  // Byte-pair encoding (arXiv:1508.07909): merge neighbours, those whose union has the best score first.
  function merge(pieces) {
    for (;;) {
      let best = -Infinity, place = -1;
      for (let n = 0; n + 1 < pieces.length; n++) {
        const score = scoreOf.get(pieces[n] + pieces[n + 1]);
        if (score > best) [best, place] = [score, n];
      }
      if (place < 0) return pieces;
      pieces.splice(place, 2, pieces[place] + pieces[place + 1]);
    }
  }

  // The segmentation with the highest sum of scores (arXiv:1804.10959, section 3.1), by dynamic programming.
  function segment(characters) {
    const sums = [0], starts = [0];
    for (let end = 1; end <= characters.length; end++) {
      let best = -Infinity, from = end - 1, piece = "";
      for (let start = end - 1; start >= Math.max(0, end - longest); start--) {
        piece = characters[start] + piece;
        const sum = sums[start] + (scoreOf.get(piece) ?? (start === end - 1 ? vocabulary.unknown_score : -Infinity));
        if (sum >= best) [best, from] = [sum, start];   // of equal sums, the longest piece
      }
      sums.push(best);
      starts.push(from);
    }
    const pieces = [];
    for (let end = characters.length; end > 0; end = starts[end]) pieces.unshift(characters.slice(starts[end], end).join(""));
    return pieces;
  }

  // --- An imported tokenizer: zerotollm/programs/imported_vocabulary.py

  const merges = new Map((vocabulary.merges ?? []).map(([left, right, both], rank) => [left * tokens.length + right, { rank, both }]));
  const patterns = (vocabulary.patterns ?? []).map(pattern => new RegExp(pattern, "u"));
  const added = vocabulary.added && new RegExp(vocabulary.added, "u");
  const leftAlone = vocabulary.left_alone && new RegExp(vocabulary.left_alone, "u");   // by normal forms, but for newer versions of Unicode

  // Merge neighbours, those first whose merge was learned first.
  function mergePairs(some) {
    for (;;) {
      let best = null, place = -1;
      for (let n = 0; n + 1 < some.length; n++) {
        const merge = merges.get(some[n] * tokens.length + some[n + 1]);
        if (merge && (!best || merge.rank < best.rank)) [best, place] = [merge, n];
      }
      if (!best) return some;
      some.splice(place, 2, best.both);
    }
  }

  function changed(text, isFirst) {
    for (const [name, one, other] of vocabulary.changes) {
      if (name === "normalize") text = text.split(leftAlone).map((some, n) => n % 2 ? some : some.normalize(one)).join("");
      else if (name === "replace") text = text.replaceAll(one, () => other);
      else if (text && (name === "prepend" || (!text.startsWith(one) && (isFirst || name === "begin")))) text = one + text;
    }
    return text;
  }

  function encodeImported(text) {
    const result = [], add = some => { for (const id of some) result.push(id); };
    (added ? text.split(added) : [text]).forEach((part, n) => {
      if (n % 2) return add([ids.get(part)]);   // an added token, which is never merged
      let words = [changed(part, n === 0)];
      for (const pattern of patterns) words = words.flatMap(word => word.split(pattern).filter(one => one));
      for (const word of words) {
        if (vocabulary.whole_words && ids.has(word)) add([ids.get(word)]);
        else add(mergePairs(vocabulary.byte_level ? byteIds(word) : [...word].flatMap(c => ids.has(c) ? [ids.get(c)] : byteIds(c))));
      }
    });
    return result;
  }

  function encode(text) {
    text = text.toWellFormed?.() ?? text;
    if (kind === "merges") return encodeImported(text);
    if (vocabulary.normalization) text = text.normalize(vocabulary.normalization);
    const result = [];
    for (const word of text.match(WORDS) ?? []) {
      const characters = [...word];
      const pieces = kind === "bpe" ? merge(characters) : kind === "unigram" ? segment(characters) : characters;
      let unknown = false;
      for (const piece of pieces) {
        const id = ids.get(piece);
        if (id !== undefined) result.push(id);
        else if (vocabulary.byte_fallback) result.push(...byteIds(piece));
        else if (!unknown) result.push(unk);   // neighbouring unknown characters are one token
        unknown = id === undefined;
      }
    }
    return result;
  }

  const decoder = () => new TextDecoder("utf-8", { ignoreBOM: true });

  // The text of each id: a character of several tokens belongs to the last of them.
  function pieces(some) {
    const stream = decoder();
    return some.map(id => stream.decode(bytesOf[id], { stream: true }));
  }
  const decode = some => pieces(some).join("");

  // How a token is called alone: its text, `<0xE2>` for a byte of a character, `<s>` for a special token.
  const nameOfByte = byte => byte < 0x80 ? String.fromCharCode(byte) : `<0x${byte.toString(16).toUpperCase()}>`;
  function name(id) {
    const token = tokens[id];
    if (Array.isArray(token)) return token.map(nameOfByte).join("");
    return token ?? (Object.hasOwn(vocabulary.names, id) ? vocabulary.names[id] : `<${id}>`);
  }

  // The automaton of zerotollm/data/tokens/utf8.py: the state after a token, or -1 where it may not follow (RFC 3629).
  const nextState = (state, id) => utf8States[id]?.[state] ?? (state === 0 && !(id in utf8States) ? 0 : -1);
  const stateAfter = some => {
    let state = 0;
    for (const id of some.slice(-8)) state = Math.max(0, nextState(state, id));
    return state;
  };

  return { encode, decode, pieces, name, nextState, stateAfter, size: tokens.length };
}
