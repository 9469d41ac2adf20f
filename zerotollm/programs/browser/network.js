"use strict";
// The model: matrices of 8 bits, widened once to float32. The letters of a name are the axes of its array: T new tokens,
// S all tokens, D width, H query heads, K key and value heads, C width of a head, V vocabulary.

// Seven bits a character, the most that one byte of UTF-8 holds; three of the 128 codes cannot stand in a script element
// and are 128 higher.
function unpack(text, size) {
  const bytes = new Uint8Array(size + 7), code = i => text.charCodeAt(i) & 127;
  for (let i = 0, at = 0; at < size; i += 8) {
    for (let k = 0; k < 7; k++) bytes[at++] = code(i + k) << (k + 1) | code(i + k + 1) >> (6 - k);
  }
  return bytes.buffer;
}

// Returns name -> matrix. One of 8 bits has a row for each output, and a scale for each row.
function readWeights(arrays, buffer, matrix) {
  const weights = {};
  for (const { name, rows, cols, at, scales } of arrays) {
    if (scales === undefined) {
      weights[name] = { rows, cols, stride: cols, data: new Float32Array(buffer, at, rows * cols) };
      continue;
    }
    const small = new Int8Array(buffer, at, rows * cols), scale = new Float32Array(buffer, scales, rows);
    const { stride, data } = weights[name] = matrix(rows, cols);
    for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) data[r * stride + c] = small[r * cols + c] * scale[r];
  }
  return weights;
}

function softmax(x, from, to) {
  let most = -Infinity, sum = 0;
  for (let i = from; i < to; i++) most = Math.max(most, x[i]);
  for (let i = from; i < to; i++) sum += x[i] = Math.exp(x[i] - most);
  for (let i = from; i < to; i++) x[i] /= sum;
  return x;
}

const sigmoid = x => 1 / (1 + Math.exp(-x));
const ACTIVATIONS = {
  gelu: x => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),   // arXiv:1606.08415
  relu: x => Math.max(x, 0),
  relu2: x => Math.max(x, 0) ** 2,   // arXiv:2109.08668
  silu: x => x * sigmoid(x),   // arXiv:1702.03118
};

// `c` is the TransformerConfig, every size filled in; `w` the matrices by name.
function makeNetwork(c, w, product) {
  const L = c.num_layers, D = c.width, H = c.num_heads, K = c.num_kv_heads, A = c.key_width, C = c.head_width;
  const both = c.encoder_layers > 0, pre = c.norm_position === "pre", half = A / 2;
  const S = both && c.position !== "learned" ? 2 * c.max_length : c.max_length;   // tokens of a text
  const stack = both ? "decoder." : "";

  // RMSNorm (arXiv:1910.07467, equation 4) or LayerNorm (arXiv:1607.06450, equation 4) of vectors of `width` numbers.
  function norm(name, x, width = D) {
    const scale = w[`${name}.scale`].data, bias = w[`${name}.bias`]?.data, y = new Float32Array(x.length);
    for (let from = 0; from < x.length; from += width) {
      let mean = 0, square = 0;
      if (c.norm === "layer") { for (let i = 0; i < width; i++) mean += x[from + i]; mean /= width; }
      for (let i = 0; i < width; i++) square += (x[from + i] - mean) ** 2;
      const inverse = 1 / Math.sqrt(square / width + c.norm_epsilon);
      for (let i = 0; i < width; i++) y[from + i] = scale[i] * (x[from + i] - mean) * inverse + (bias ? bias[i] : 0);
    }
    return y;
  }

  // Angles of rope (arXiv:2104.09864, equation 34), stretched by position interpolation (arXiv:2306.15595) or as in Llama 3.
  const frequencies = Array.from({ length: half | 0 }, (_, i) => {
    const f = Math.fround(c.rope_theta ** (-i / half));
    const periods = c.rope_original_length * f / (2 * Math.PI);
    const kept = c.rope_original_length ? Math.min(1, Math.max(0, (periods - c.rope_stretched) / (c.rope_kept - c.rope_stretched))) : 0;
    return Math.fround(f * (kept + (1 - kept) / c.rope_factor));
  });
  function rope(x, heads, from, T) {
    for (let t = 0; t < T; t++) {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround((from + t) * frequencies[i]), cos = Math.cos(angle), sin = Math.sin(angle);
        for (let h = 0, n = t * heads * A + i; h < heads; h++, n += A) {
          const a = x[n], b = x[n + half];
          x[n] = a * cos - b * sin;
          x[n + half] = b * cos + a * sin;
        }
      }
    }
    return x;
  }

  // Vectors of tokens `from` to `to`, with token shift (arXiv:2305.13048) and positions (arXiv:1706.03762, section 3.5).
  function embed(side, ids, from, to) {
    const { data: e, stride } = w.embedding, x = new Float32Array((to - from) * D), scale = c.embedding_scale ? Math.sqrt(D) : 1;
    for (let t = from; t < to; t++) {
      const o = (t - from) * D;
      for (let i = 0; i < D; i++) {
        let sum = e[ids[t] * stride + i];
        for (let n = 1; n <= c.token_shift && n <= t; n++) sum += w[`${side}token_shift.weights`].data[(n - 1) * D + i] * e[ids[t - n] * stride + i];
        sum *= scale;
        if (c.position === "learned") sum += w[`${side}positions`].data[t * w[`${side}positions`].stride + i];
        if (c.position === "sinusoidal") {
          const [pair, odd] = c.sinusoid_layout === "interleaved" ? [i >> 1, i & 1] : [i % (D / 2), i >= D / 2];
          const angle = t / 10000 ** (2 * pair / D);
          sum += odd ? Math.cos(angle) : Math.sin(angle);
        }
        x[o + i] = sum;
      }
    }
    return x;
  }

  const linear = (name, x, T) => product(w[name], x, T, w[`${name}_bias`]);

  // An attention: its parameters' name, what its heads are called in `off`, and its queries, keys and values so far. It is
  // causal, or all of its keys are seen.
  const floats = size => new Float32Array(size);
  const newAttention = (name, part, causal, queries, keys) => ({
    name, part, causal, length: 0, query: floats(queries * H * A), key: floats(keys * K * A), value: floats(keys * K * C),
  });

  // Weights of head h from token t to each token that it sees (arXiv:1706.03762, equation 1).
  function weightsOf({ causal, length, query, key }, h, t) {
    const seen = causal ? t + 1 : length, g = Math.floor(h * K / H), scores = floats(seen);
    for (let s = 0; s < seen; s++) {
      let sum = 0;
      for (let i = 0, q = (t * H + h) * A, k = (s * K + g) * A; i < A; i++) sum += query[q + i] * key[k + i];
      scores[s] = sum / Math.sqrt(A);
    }
    return softmax(scores, 0, seen);
  }

  function addKeys(attention, x, from, to, turns) {
    const { name, key, value } = attention, T = to - from;
    let k = linear(`${name}.key`, x, T);
    if (c.qk_norm) k = norm(`${name}.key_norm`, k, A);   // arXiv:2010.04245
    key.set(turns ? rope(k, K, from, T) : k, from * K * A);
    value.set(linear(`${name}.value`, x, T), from * K * C);
    attention.length = to;
  }

  function attend(attention, x, from, to, turns, off) {
    const { name, part, query, value } = attention, T = to - from;
    let q = linear(`${name}.query`, x, T);
    if (c.qk_norm) q = norm(`${name}.query_norm`, q, A);
    query.set(turns ? rope(q, H, from, T) : q, from * H * A);
    const mixed = floats(T * H * C);
    for (let h = 0; h < H; h++) {
      if (off.has(part + h)) continue;   // zero ablation: the head writes nothing
      for (let t = from; t < to; t++) {
        const weights = weightsOf(attention, h, t), o = ((t - from) * H + h) * C, g = Math.floor(h * K / H);
        for (let s = 0; s < weights.length; s++) {
          const weight = weights[s];
          for (let i = 0, v = (s * K + g) * C; i < C; i++) mixed[o + i] += weight * value[v + i];
        }
      }
    }
    return linear(`${name}.output`, mixed, T);
  }

  function feedForward(name, x, T) {
    const u = linear(`${name}.up`, x, T);
    if (c.feed_forward === "swiglu") {   // arXiv:2002.05202, equation 6
      const gate = linear(`${name}.gate`, x, T);
      for (let n = 0; n < u.length; n++) u[n] *= gate[n] * sigmoid(gate[n]);
    } else {
      const activate = ACTIVATIONS[c.feed_forward];
      for (let n = 0; n < u.length; n++) u[n] = activate(u[n]);
    }
    return linear(`${name}.down`, u, T);
  }

  // A block: `attentions` are its own, and in a decoder that has a source its cross-attention.
  const add = (x, y) => x.map((v, n) => v + y[n]);
  function block(name, key, { self, cross }, x, from, to, turns, off) {
    if (off.has(key)) return x;
    const sublayer = (part, f) => {
      if (off.has(`${key}.${part}`)) return;
      const normName = `${name}.${part}_norm`;
      x = pre ? add(x, f(norm(normName, x))) : norm(normName, add(x, f(x)));
    };
    sublayer("attention", y => { addKeys(self, y, from, to, turns); return attend(self, y, from, to, turns, off); });
    if (cross) sublayer("cross_attention", y => attend(cross, y, from, to, c.position === "rope" && c.cross_rope, off));
    sublayer("feed_forward", y => feedForward(`${name}.feed_forward`, y, to - from));
    return x;
  }
  const turnsIn = layer => c.position === "rope" && !(c.nope_every && (layer + 1) % c.nope_every === 0);   // arXiv:2501.18795

  // A text as the model reads it: what each layer computed for each of its tokens. `off` holds what is taken out: "2" a
  // layer, "2.0" its first head, "2.x0" the first that looks at the source, "e2" and "e2.0" the same of the encoder.
  function newReading(off = new Set()) {
    const layers = Array.from({ length: L }, (_, i) => ({
      self: newAttention(`${stack}layer_${i}.attention`, `${i}.`, true, S, S),
      cross: both ? newAttention(`${stack}layer_${i}.cross_attention`, `${i}.x`, false, S, c.max_length) : null,
    }));
    return { ids: [], source: [], off, layers, states: Array.from({ length: L + 1 }, () => floats(S * D)) };
  }

  // The encoder: the decoder's layers get the keys and values of the source.
  function readSource(reading, source) {
    const T = source.length;
    let x = embed("encoder.", source, 0, T);
    for (let i = 0; i < c.encoder_layers; i++) {
      const self = newAttention(`encoder.layer_${i}.attention`, `e${i}.`, false, T, T);
      x = block(`encoder.layer_${i}`, `e${i}`, { self }, x, 0, T, c.position === "rope", reading.off);
    }
    if (pre) x = norm("encoder.final_norm", x);
    for (const { cross } of reading.layers) addKeys(cross, x, 0, T, c.position === "rope" && c.cross_rope);
    reading.source = source.slice();
  }

  function compute(reading, from, to, firstLayer) {
    if (from >= to) return;
    let x = firstLayer ? reading.states[firstLayer].slice(from * D, to * D) : embed(stack, reading.ids, from, to);
    reading.states[firstLayer].set(x, from * D);
    for (let i = firstLayer; i < L; i++) {
      x = block(`${stack}layer_${i}`, String(i), reading.layers[i], x, from, to, turnsIn(i), reading.off);
      reading.states[i + 1].set(x, from * D);
    }
  }

  // Makes `reading` one of `ids` without the parts in `off`; what it holds already is not computed again (the KV cache).
  function read(reading, ids, off = reading.off, source = []) {
    let same = 0;
    while (same < ids.length && ids[same] === reading.ids[same]) same++;
    const changed = [...off, ...reading.off].filter(part => off.has(part) !== reading.off.has(part));
    const inEncoder = changed.some(part => part.startsWith("e"));
    reading.off = new Set(off);
    reading.ids = ids.slice();
    if (both && (inEncoder || source.join() !== reading.source.join())) {
      readSource(reading, source);
      same = 0;
    } else if (changed.length) {
      compute(reading, 0, same, Math.min(...changed.map(part => parseInt(part, 10))));
    }
    compute(reading, same, ids.length, 0);
    return reading;
  }

  // Logits of the token after token t, from the state after `layer` layers: all of them, or fewer for the logit lens.
  function logits(reading, t, layer = L) {
    let x = reading.states[layer].slice(t * D, (t + 1) * D);
    if (pre) x = norm(`${stack}final_norm`, x);
    const y = product(c.tie_embeddings ? w.embedding : w.head, x, 1, w.head_bias);
    const cap = c.logit_soft_cap;   // arXiv:2408.00118
    return cap ? y.map(v => cap * Math.tanh(v / cap)) : y;
  }

  return { newReading, read, logits, weightsOf, layers: L, encoderLayers: c.encoder_layers, heads: H, context: c.max_length, longest: S };
}

// --- From logits to a token

// Probabilities of the next token: `allowed(id)` may follow; then temperature, top-k, top-p and min-p.
function distribution(logits, { temperature, top_k = 0, top_p = 1, min_p = 0 }, allowed, size) {
  const p = new Float64Array(size);
  let best = -1;
  for (let id = 0; id < size; id++) {
    p[id] = allowed(id) ? logits[id] : -Infinity;
    if (best < 0 || p[id] > p[best]) best = id;
  }
  if (temperature < 1e-5) {
    p.fill(0)[best] = 1;
    return p;
  }
  for (let id = 0; id < size; id++) p[id] /= temperature;
  softmax(p, 0, size);
  if (!top_k && top_p >= 1 && !min_p) return p;
  const sorted = p.filter(v => v > 0).sort().reverse();   // a typed array sorts numbers
  let kept = 0, before = 0;
  while (kept < sorted.length && (!kept || ((!top_k || kept < top_k) && before < top_p && sorted[kept] >= min_p * sorted[0]))) before += sorted[kept++];
  const least = sorted[kept - 1];
  let equal = sorted.subarray(0, kept).filter(v => v === least).length;   // of equal ones, lower ids are kept
  for (let id = 0; id < size; id++) if (p[id] < least || (p[id] === least && equal-- <= 0)) p[id] = 0;
  const sum = p.reduce((a, b) => a + b, 0);
  return p.map(v => v / sum);
}

// A number in [0, 1) for a seed and a position (Mulberry32): the same seed gives the same text.
function uniform(seed, position) {
  let x = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) + Math.imul(position + 1, 0x6d2b79f5) | 0;
  x = Math.imul(x ^ x >>> 15, x | 1);
  x ^= x + Math.imul(x ^ x >>> 7, x | 61);
  return ((x ^ x >>> 14) >>> 0) / 2 ** 32;
}

function draw(p, number) {
  let last = 0;
  for (let id = 0; id < p.length; id++) {
    if (!p[id]) continue;
    last = id;
    if ((number -= p[id]) < 0) return id;
  }
  return last;
}
