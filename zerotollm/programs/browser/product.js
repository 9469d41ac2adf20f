"use strict";
// Products of matrices with vectors, where nearly all time goes: in WebAssembly, four numbers at a time, or in JavaScript
// where a browser has none. A matrix is {rows, cols, stride, data}: `rows` vectors of `cols` numbers, `stride` apart.

const upTo4 = n => n + 3 & ~3;
const AT_ONCE = 64;   // vectors in one call, which bounds the memory beside the weights

// The module's one function, `dots(a, na, b, nb, size, y, ya, yb)`: the dot product of each of `na` vectors from address
// `a` on with each of `nb` from `b` on, `size` bytes each, written at y + i ya + j yb. `nb` is a multiple of 4.
function dotsModule() {
  const PARAMETERS = ["a", "na", "b", "nb", "size", "y", "ya", "yb"], NUMBERS = ["pa", "py", "left", "i"], SUMS = ["s0", "s1", "s2", "s3"];
  const names = [...PARAMETERS, ...NUMBERS, "v", ...SUMS];
  const vector = code => [0xfd, ...code];
  const get = name => [0x20, names.indexOf(name)], set = (name, value) => [...value, 0x21, names.indexOf(name)];
  const i32 = n => [0x41, n], add = (a, b) => [...a, ...b, 0x6a], mul = (a, b) => [...a, ...b, 0x6c];
  const loopWhile = (condition, ...body) => [0x03, 0x40, ...body.flat(), ...condition, 0x0d, 0, 0x0b];
  const less = (a, b) => [...a, ...b, 0x49], positive = a => [...a, ...i32(0), 0x4a];
  const load = address => [...address, ...vector([0x00, 4, 0])], zero = vector([0x0c, ...Array(16).fill(0)]);
  const add4 = (a, b) => [...a, ...b, ...vector([0xe4, 1])], mul4 = (a, b) => [...a, ...b, ...vector([0xe6, 1])];
  const lane = (name, k) => [...get(name), ...vector([0x1f, k])];
  const total = name => [0, 1, 2, 3].flatMap(k => [...lane(name, k), ...k ? [0x92] : []]);
  const store = (address, value) => [...address, ...value, 0x38, 2, 0];
  const step = (name, by) => set(name, add(get(name), by));

  const code = loopWhile(positive(get("nb")),   // four vectors of b
    set("pa", get("a")), set("py", get("y")), set("left", get("na")),
    loopWhile(positive(get("left")),   // a vector of a
      ...SUMS.map(sum => set(sum, zero)), set("i", i32(0)),
      loopWhile(less(get("i"), get("size")),   // four numbers of each
        set("v", load(add(get("pa"), get("i")))),
        ...SUMS.map((sum, k) => set(sum, add4(get(sum), mul4(get("v"), load(add(add(get("b"), mul(get("size"), i32(k))), get("i"))))))),
        step("i", i32(16))),
      ...SUMS.map((sum, k) => store(add(get("py"), mul(get("yb"), i32(k))), total(sum))),
      step("pa", get("size")), step("py", get("ya")), step("left", [0x41, 0x7f])),
    step("b", mul(get("size"), i32(4))), step("y", mul(get("yb"), i32(4))), step("nb", [0x41, 0x7c]));

  const long = n => n < 128 ? [n] : [n & 127 | 128, ...long(n >> 7)];
  const section = (id, content) => [id, ...long(content.length), ...content], text = s => [s.length, ...utf8.encode(s)];
  const locals = [2, NUMBERS.length, 0x7f, 1 + SUMS.length, 0x7b], body = [...locals, ...code, 0x0b];
  return Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [1, 0x60, PARAMETERS.length, ...PARAMETERS.map(() => 0x7f), 0]),
    ...section(2, [1, ...text("page"), ...text("memory"), 2, 0, 1]),
    ...section(3, [1, 0]),
    ...section(7, [1, ...text("dots"), 0, 0]),
    ...section(10, [1, ...long(body.length), ...body]));
}

// Returns {matrix, product} for matrices of these shapes, [{rows, cols}].
function makeProducts(shapes) {
  const size = ({ rows, cols }) => upTo4(rows) * upTo4(cols), most = key => Math.max(...shapes.map(shape => upTo4(shape[key])));
  const weights = shapes.reduce((sum, shape) => sum + size(shape), 0), xAt = 4 * weights, yAt = xAt + 4 * AT_ONCE * most("cols");
  let buffer, dots;
  try {
    const memory = new WebAssembly.Memory({ initial: Math.ceil((yAt + 4 * AT_ONCE * most("rows")) / 65536) });
    dots = new WebAssembly.Instance(new WebAssembly.Module(dotsModule()), { page: { memory } }).exports.dots;
    buffer = memory.buffer;
  } catch {   // no WebAssembly, or none with vectors
    buffer = new ArrayBuffer(4 * weights);
  }

  let next = 0;
  function matrix(rows, cols) {
    const stride = upTo4(cols), data = new Float32Array(buffer, next, upTo4(rows) * stride);
    next += 4 * data.length;
    return { rows, cols, stride, data };
  }

  // y = x W^T for the vectors `from` to `from + T` of x.
  function fast(w, x, from, T, y) {
    const { rows, cols, stride, data } = w, many = T > 1, padded = many ? upTo4(T) : 1;
    const into = new Float32Array(buffer, xAt, padded * stride).fill(0);
    for (let t = 0; t < T; t++) into.set(x.subarray((from + t) * cols, (from + t + 1) * cols), t * stride);
    if (many) dots(data.byteOffset, rows, xAt, padded, 4 * stride, yAt, 4, 4 * rows);
    else dots(xAt, 1, data.byteOffset, upTo4(rows), 4 * stride, yAt, 4, 4);
    y.set(new Float32Array(buffer, yAt, T * rows), from * rows);
  }

  function plain({ rows, cols, stride, data }, x, from, T, y) {
    for (let t = from; t < from + T; t++) {
      for (let r = 0; r < rows; r++) {
        let sum = 0;
        for (let i = 0, a = t * cols, n = r * stride; i < cols; i++) sum += x[a + i] * data[n + i];
        y[t * rows + r] = sum;
      }
    }
  }

  function product(w, x, T, bias) {
    const y = new Float32Array(T * w.rows), multiply = dots ? fast : plain;
    for (let from = 0; from < T; from += AT_ONCE) multiply(w, x, from, Math.min(AT_ONCE, T - from), y);
    if (bias) for (let n = 0; n < y.length; n++) y[n] += bias.data[n % w.rows];
    return y;
  }

  return { matrix, product, vectorized: Boolean(dots) };
}
