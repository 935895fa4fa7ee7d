// Between nested lists of numbers and what onnxruntime's tensors are made of; for Node and the browser.

const ARRAYS = { float32: Float32Array, float64: Float64Array, int32: Int32Array, int64: BigInt64Array };

/** [type, data, dims] of nested lists, as Tensor takes them; lists of different lengths are an error. */
export function tensorParts(name, type, lists) {
  const dims = [];
  for (let level = lists; Array.isArray(level); level = level[0]) dims.push(level.length);
  const fits = (level, depth) =>
    depth === dims.length
      ? typeof level === "number"
      : Array.isArray(level) && level.length === dims[depth] && level.every((own) => fits(own, depth + 1));
  if (!fits(lists, 0)) throw new Error(`the lists of ${name} are not numbers of one common shape: make them equally long`);
  const TypedArray = ARRAYS[type];
  if (!TypedArray) throw new Error(`${name} is of type ${type}, which this example does not make: add it to ARRAYS`);
  const numbers = [lists].flat(Infinity);
  return [type, TypedArray.from(type === "int64" ? numbers.map(BigInt) : numbers), dims];
}

/** Nested lists of a tensor. */
export function nested({ data, dims }) {
  const part = (from, to, [size, ...rest]) => {
    if (size === undefined) return Number(data[from]);
    const step = (to - from) / size;
    return Array.from({ length: size }, (_, i) => part(from + i * step, from + (i + 1) * step, rest));
  };
  return part(0, data.length, dims);
}

/** The arrays by input name that the session takes, from an object of nested lists. */
export function feedsOf(session, lists, Tensor) {
  const feeds = {};
  for (const { name, type } of session.inputMetadata) {
    if (!(name in lists)) throw new Error(`the inputs hold no ${name}: add nested lists of numbers by that name`);
    feeds[name] = new Tensor(...tensorParts(name, type, lists[name]));
  }
  return feeds;
}

/** An object of nested lists by input name, from its JSON. */
export function parseLists(text) {
  let lists;
  try {
    lists = JSON.parse(text);
  } catch (error) {
    throw new Error(`the inputs are no JSON (${error.message}): expected an object of nested lists by input name`);
  }
  if (lists === null || typeof lists !== "object") throw new Error("the inputs are no object: expected nested lists by input name");
  return lists;
}

/** JSON of the outputs, nested lists by output name. */
export function printed(outputs) {
  return JSON.stringify(Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, nested(value)])));
}
