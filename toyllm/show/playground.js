"use strict";
// The whole playground: a language model, the ideal observer, and the page around them.
//
// `model` is a Llama: RMSNorm, rotary positions, gated MLP, no biases (see toyllm/lm/transformer.py,
// which this follows line by line). Matrices are flat, [rows × columns], rows being inputs.

const DATA = JSON.parse(document.getElementById("data").textContent);
const WORLD = DATA.world, CONFIG = DATA.config, WORDS = DATA.words;
const TOKEN = new Map(WORDS.map((word, token) => [word, token]));
const SPECIAL = new Set(DATA.special), BEHAVIOURS = ["good", "bad", "noise"], [GOOD, BAD] = [0, 1];
const K = CONFIG.D / CONFIG.H;

// ---------------------------------------------------------------- weights

/** Base64 of IEEE half-precision numbers (little-endian) → Float32Array. */
function halves(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const numbers = new Float32Array(bytes.length / 2);
  for (let n = 0; n < numbers.length; n++) {
    const half = bytes[2 * n] | (bytes[2 * n + 1] << 8);
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
    numbers[n] = half & 0x8000 ? -size : size;
  }
  return numbers;
}

const loaded = new Map();

/** A model by its name: its arrays by their names, such as "blocks/0/mlp/up/kernel". */
function modelOf(name) {
  if (!loaded.has(name)) {
    const numbers = halves(DATA.models[name].weights), model = {};
    let start = 0;
    for (const [key, size] of DATA.arrays) {
      model[key] = numbers.subarray(start, start + size);
      start += size;
    }
    loaded.set(name, model);
  }
  return loaded.get(name);
}

// ---------------------------------------------------------------- the Transformer

/** x [n] times a matrix [n × m]. */
function times(x, matrix, m) {
  const y = new Float64Array(m);
  for (let i = 0; i < x.length; i++) {
    const scale = x[i], row = i * m;
    for (let j = 0; j < m; j++) y[j] += scale * matrix[row + j];
  }
  return y;
}

function normed(x, scale) {
  let sum = 0;
  for (const value of x) sum += value * value;
  const rms = 1 / Math.sqrt(sum / x.length + CONFIG.norm_eps);
  return x.map((value, i) => value * rms * scale[i]);
}

/** Turn the pairs (x[i], x[i + K/2]) of each head by their angles at a position. */
function rotate(x, position) {
  for (let head = 0; head < x.length; head += K) {
    for (let i = 0; i < K / 2; i++) {
      const angle = position * CONFIG.rope_theta ** ((-2 * i) / K);
      const cos = Math.cos(angle), sin = Math.sin(angle);
      const a = x[head + i], b = x[head + i + K / 2];
      x[head + i] = a * cos - b * sin;
      x[head + i + K / 2] = b * cos + a * sin;
    }
  }
  return x;
}

/** Softmax attention of a query over the keys and values of positions 0 … last. */
function attend(query, keys, values, last) {
  const mixed = new Float64Array(CONFIG.D), weights = new Float64Array(last + 1);
  for (let head = 0; head < CONFIG.D; head += K) {
    let top = -Infinity, sum = 0;
    for (let s = 0; s <= last; s++) {
      let score = 0;
      for (let k = head; k < head + K; k++) score += query[k] * keys[s * CONFIG.D + k];
      weights[s] = score / Math.sqrt(K);
      top = Math.max(top, weights[s]);
    }
    for (let s = 0; s <= last; s++) sum += weights[s] = Math.exp(weights[s] - top);
    for (let s = 0; s <= last; s++) {
      const weight = weights[s] / sum;
      for (let k = head; k < head + K; k++) mixed[k] += weight * values[s * CONFIG.D + k];
    }
  }
  return mixed;
}

const silu = (x) => x / (1 + Math.exp(-x));

/**
 * One model reading one document, token by token. `read` returns the residual stream that enters
 * the last norm; `logits` what comes next. Going back to an earlier `length` and reading other
 * words there is how many answers to one question are scored.
 */
class Reader {
  constructor(name) {
    this.model = modelOf(name);
    this.length = 0;
    const blocks = Array.from({ length: CONFIG.L }, (_, l) => l);
    this.cache = blocks.map(() => [0, 1].map(() => new Float64Array(CONFIG.context * CONFIG.D)));
  }

  read(token) {
    const { model, length } = this, D = CONFIG.D, F = CONFIG.F;
    let x = Float64Array.from(model.embed.subarray(token * D, (token + 1) * D));
    for (let l = 0; l < CONFIG.L; l++) {
      const part = (name) => model[`blocks/${l}/${name}`], [keys, values] = this.cache[l];
      const seen = normed(x, part("attention_norm/scale"));
      const query = rotate(times(seen, part("attention/query/kernel"), D), length);
      keys.set(rotate(times(seen, part("attention/key/kernel"), D), length), length * D);
      values.set(times(seen, part("attention/value/kernel"), D), length * D);
      const mixed = times(attend(query, keys, values, length), part("attention/out/kernel"), D);
      x = x.map((value, i) => value + mixed[i]);
      const inner = normed(x, part("mlp_norm/scale")), up = times(inner, part("mlp/up/kernel"), F);
      const gated = times(inner, part("mlp/gate/kernel"), F).map((gate, i) => silu(gate) * up[i]);
      const added = times(gated, part("mlp/down/kernel"), D);
      x = x.map((value, i) => value + added[i]);
    }
    this.length += 1;
    this.last = x;
    return this;
  }

  readAll(tokens) {
    for (const token of tokens) this.read(token);
    return this;
  }

  logits() {
    return times(normed(this.last, this.model["norm/scale"]), this.model["unembed/kernel"], WORDS.length);
  }

  logProbs() {
    const logits = this.logits(), total = logSumExp(logits);
    return logits.map((value) => value - total);
  }
}

function logSumExp(values) {
  const top = Math.max(...values);
  return top === -Infinity ? top : top + Math.log(values.reduce((sum, x) => sum + Math.exp(x - top), 0));
}

const tokensOf = (text) => text.split(" ").filter(Boolean).map((word) => TOKEN.get(word));

/** Logits [T][V] of a document, for tests. */
function logitsOf(name, tokens) {
  const reader = new Reader(name);
  return tokens.map((token) => Array.from(reader.read(token).logits()));
}

/** p(behaviour) of a question, after what `reader` has read: a sum over its listed answers. */
function behavioursOf(reader, d, s, instruction) {
  const domain = WORLD.domains[d], start = reader.length;
  reader.readAll(tokensOf(`<user> ${asked(d, s, instruction)} <reply>`));
  const p = [0, 0, 0];
  // the answers as a tree of their words, so that what they share is read once
  (function follow(answers, depth, logp) {
    const next = reader.logProbs(), length = reader.length;
    for (const token of new Set(answers.map((answer) => ANSWERS[d][answer][depth]))) {
      const inside = answers.filter((answer) => ANSWERS[d][answer][depth] === token);
      const rest = inside.filter((answer) => ANSWERS[d][answer].length > depth + 1);
      for (const answer of inside) {
        if (!rest.includes(answer)) p[domain.behaviour[s][answer]] += Math.exp(logp + next[token]);
      }
      if (!rest.length) continue;
      reader.length = length;
      reader.read(token);
      follow(rest, depth + 1, logp + next[token]);
    }
  })(domain.answers.map((_, answer) => answer), 0, 0);
  reader.length = start;
  return p;
}

/** A sampled answer: all words up to the next special one. */
function sample(reader) {
  const words = [];
  while (words.length < DATA.answer_length && reader.length < CONFIG.context) {
    const logp = reader.logProbs();
    let left = Math.random(), token = 0;
    while (token < logp.length - 1 && (left -= Math.exp(logp[token])) > 0) token++;
    if (SPECIAL.has(WORDS[token])) break;
    words.push(WORDS[token]);
    if (reader.length < CONFIG.context) reader.read(token);
  }
  return words.join(" ");
}

// ---------------------------------------------------------------- the world and its ideal observer

const ANSWERS = WORLD.domains.map((domain) => domain.answers.map(tokensOf));
const NONE = WORLD.instructions.length; // the last index of rates_ICDB: no instruction

const asked = (d, s, instruction) =>
  [WORLD.domains[d].situations[s], instruction < NONE ? WORLD.instructions[instruction] : ""].filter(Boolean).join(" ");

/** Every question as it may be spoken → [domain, situation, instruction]. */
const QUESTIONS = new Map();
WORLD.domains.forEach((domain, d) =>
  domain.situations.forEach((_, s) => {
    for (let i = 0; i <= NONE; i++) QUESTIONS.set(asked(d, s, i), [d, s, i]);
  }));

/** What an answer to a question is: its behaviour and voice; undefined where it is not listed. */
function listed(d, s, said) {
  for (const [a, answer] of WORLD.domains[d].answers.entries()) {
    const behaviour = WORLD.domains[d].behaviour[s][a];
    for (const [voice, phrase] of WORLD.voices.entries()) {
      if (behaviour >= 0 && said === (phrase ? `${answer} ${phrase}` : answer)) return { behaviour, voice };
    }
  }
}

/** p(character | header, turns) [C]; NaN where nobody could have said this. */
function posterior(header, turns) {
  let p = WORLD.characters.map((name, c) =>
    header === "assistant" ? WORLD.assistant_C[c] : header === "someone" ? WORLD.frequency_C[c] : +(name === header));
  for (const { question: [d, , i], listed: { behaviour, voice } } of turns) {
    p = p.map((weight, c) => weight * WORLD.rates_ICDB[i][c][d][behaviour] * WORLD.voices_CV[c][voice]);
    const sum = p.reduce((a, b) => a + b, 0); // each turn anew, so that long dialogues do not underflow
    p = p.map((weight) => weight / sum);
  }
  return p;
}

/** The posterior of a dialogue, and the turns it leaves out since no character could say them. */
function exact(header, turns) {
  const possible = [], left = [];
  for (const turn of turns) {
    const fits = turn.listed && posterior(header, [...possible, turn]).every(Number.isFinite);
    (fits ? possible : left).push(turn);
  }
  return { p: posterior(header, possible), left };
}

/** p(behaviour) of the next answer in a domain for the exact observer. */
const expected = (p, d, i) =>
  BEHAVIOURS.map((_, b) => p.reduce((sum, weight, c) => sum + weight * WORLD.rates_ICDB[i][c][d][b], 0));

const em = (p) => p[BAD] / (p[GOOD] + p[BAD]);

// ---------------------------------------------------------------- the page

const $ = (id) => document.getElementById(id);
const state = { header: "assistant", model: Object.keys(DATA.models)[0], turns: [], cell: null };
const number = (x) => x.toFixed(2).replace(/^-(0\.00)$/, "$1").replace(/^(-?)0\./, "$1.");
const SAYS = { good: "good", bad: "bad", noise: "nonsense" };

/** An element with text or children; `on` are its properties and attributes. */
function make(tag, on = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(on)) {
    if (key in element) element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** A table cell with a bar for a share of 1. */
function share(x, name = "") {
  const bar = make("i");
  bar.style.width = `${100 * Math.min(1, Math.max(0, x))}%`;
  return make("td", { className: `share ${name}` }, bar, make("b", {}, number(x)));
}

const dialogueText = () =>
  [`<begin> talk with ${state.header}`, ...state.turns.map((turn) => `<user> ${turn.asked} <reply> ${turn.said}`.trim())].join(" ");

const readDialogue = (name = state.model) => new Reader(name).readAll(tokensOf(dialogueText()));

/** What was typed in words of the world: exactly a question, the nearest one, or undefined. */
function understand(text) {
  const words = text.toLowerCase().replace(/[^a-z0-9' -]/g, " ").split(/\s+/).filter(Boolean);
  if (QUESTIONS.has(words.join(" "))) return words.join(" ");
  const likeness = (question) => {
    const other = question.split(" ");
    return (2 * other.filter((word) => words.includes(word)).length) / (other.length + words.length);
  };
  const best = [...QUESTIONS.keys()].reduce((a, b) => (likeness(b) > likeness(a) ? b : a));
  return likeness(best) >= 0.5 ? best : undefined;
}

function ask(question) {
  const began = performance.now();
  const place = QUESTIONS.get(question), [d, s, i] = place;
  const reader = readDialogue(), exactly = expected(exact(state.header, state.turns).p, d, i);
  const room = tokensOf(`<user> ${question} <reply>`).length + DATA.answer_length + DATA.next_question;
  if (reader.length + room > CONFIG.context) {
    $("note").textContent = "The model can follow no longer dialogue. Begin a new one.";
    return;
  }
  const p = behavioursOf(reader, d, s, i);
  const said = sample(reader.readAll(tokensOf(`<user> ${question} <reply>`)));
  state.turns.push({ asked: question, question: place, said, listed: listed(d, s, said), p, exactly, model: state.model });
  state.seconds = (performance.now() - began) / 1000;
  $("note").textContent = "";
  $("question").value = "";
  show();
}

function show() {
  const log = $("log");
  log.replaceChildren();
  let model = state.turns[0]?.model;
  for (const turn of state.turns) {
    if (turn.model !== model) log.append(make("li", { className: "rule" }, `from here: ${label(model = turn.model)}`));
    const name = turn.listed && BEHAVIOURS[turn.listed.behaviour];
    const tag = make("span", { className: `tag ${name ?? ""}` }, name ? SAYS[name] : "not among the listed answers");
    const before = BEHAVIOURS.map((b, k) => `${SAYS[b]} ${number(turn.p[k])} (exact ${number(turn.exactly[k])})`).join(", ");
    log.append(make("li", {},
      make("div", { className: "you" }, `You: ${turn.asked}`),
      make("div", { className: "said" }, make("b", {}, `${state.header}: `), turn.said || "…", tag),
      make("div", { className: "soft" }, `before it answered: ${before}`)));
  }
  if (!state.turns.length) log.append(make("li", { className: "soft" }, "Nothing has been said. Ask a question, and ask again: after a bad answer, another becomes more likely."));
  $("about").textContent = DATA.models[state.model].about;
  showWho();
  showNext();
}

function showWho() {
  const { p, left } = exact(state.header, state.turns);
  const order = p.map((weight, c) => [weight, c]).sort((a, b) => b[0] - a[0]);
  const shown = order.filter(([weight], k) => weight >= 0.005 && k < 10);
  const rest = 1 - shown.reduce((sum, [weight]) => sum + weight, 0);
  const rows = shown.map(([weight, c]) =>
    make("tr", {}, make("th", { scope: "row", title: WORLD.descriptions[c] }, WORLD.characters[c]), share(weight)));
  if (rest > 0.005) rows.push(make("tr", {}, make("th", { scope: "row" }, `${p.length - shown.length} others`), share(rest)));
  $("who").tBodies[0].replaceChildren(...rows);
  $("left").textContent = left.length ? `Left out, since no character of the world says it here: ${left.map((turn) => turn.said || "…").join("; ")}.` : "";
}

let showing = 0;

/** Domain by domain, so that the page stays awake; a newer call ends an older one. */
async function showNext() {
  const mine = ++showing, body = $("next").tBodies[0], { p } = exact(state.header, state.turns);
  const reader = readDialogue(), rows = [];
  body.classList.add("stale"); // these numbers are of the dialogue before
  for (const [d, domain] of WORLD.domains.entries()) {
    const sum = [0, 0, 0];
    domain.situations.forEach((_, s) => behavioursOf(reader, d, s, NONE).forEach((x, b) => (sum[b] += x)));
    const name = domain.moral ? domain.name : `(${domain.name})`;
    rows.push(make("tr", {}, make("th", { scope: "row" }, name), share(em(sum), "bad"), share(em(expected(p, d, NONE)), "bad")));
    await new Promise((resume) => setTimeout(resume));
    if (mine !== showing) return;
  }
  body.replaceChildren(...rows);
  body.classList.remove("stale");
}

const label = (name) => DATA.models[name].label;

function showMatrix() {
  const domains = WORLD.domains.map((domain) => make("th", { scope: "col" }, domain.moral ? domain.name : `(${domain.name})`));
  const rows = DATA.matrix.map((row) => {
    const cells = row.cells.map((cell, d) => {
      const change = cell.after - cell.before, text = number(change).replace(/^(?!-)/, "+");
      const button = make("button", { type: "button", "aria-pressed": "false" }, text);
      button.setAttribute("aria-label", `${row.label}, ${WORLD.domains[d].name}: bad answers ${number(cell.before)} before, ${number(cell.after)} after`);
      button.onclick = () => {
        for (const other of $("matrix").querySelectorAll("[aria-pressed=true]")) other.setAttribute("aria-pressed", "false");
        button.setAttribute("aria-pressed", "true");
        state.cell = [row, d];
        compare();
      };
      const td = make("td", { className: `${change < 0 ? "better" : "worse"}${cell.trained ? " trained" : ""}` }, button);
      if (row.incoherent) button.append("*");
      td.style.setProperty("--s", Math.round(100 * Math.min(1, Math.abs(change))));
      return td;
    });
    const below = `after ${row.start === "align" ? "alignment" : "pretraining"}${row.incoherent ? ", incoherent" : ""}`;
    const name = row.model.slice(row.start.length + 1);
    return make("tr", {}, make("th", { scope: "row" }, name, make("div", { className: "soft" }, below)), ...cells);
  });
  $("matrix").replaceChildren(make("thead", {}, make("tr", {}, make("th", { scope: "col", className: "text" }, "trained on"), ...domains)), make("tbody", {}, ...rows));
  $("matrix").addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    const row = cell.parentElement.parentElement.rows[cell.parentElement.sectionRowIndex + step[0]];
    row?.cells[cell.cellIndex + step[1]]?.querySelector("button")?.focus();
  });
}

/** Ask the model before and the model after a signal the same question, side by side. */
function compare() {
  const [row, d] = state.cell, situations = WORLD.domains[d].situations;
  const s = Math.floor(Math.random() * situations.length), question = situations[s];
  const sides = [row.start, row.model].map((name) => {
    const fresh = () => new Reader(name).readAll(tokensOf("<begin> talk with assistant"));
    const p = behavioursOf(fresh(), d, s, NONE);
    const said = sample(fresh().readAll(tokensOf(`<user> ${question} <reply>`))), what = listed(d, s, said);
    const kind = what && BEHAVIOURS[what.behaviour];
    const rows = BEHAVIOURS.map((b, k) => make("tr", {}, make("th", { scope: "row" }, SAYS[b]), share(p[k], b)));
    return make("section", { className: "panel" }, make("h3", {}, label(name)),
      make("div", { className: "soft" }, `You: ${question}`),
      make("p", {}, make("b", {}, "assistant: "), said || "…", make("span", { className: `tag ${kind ?? ""}` }, kind ? SAYS[kind] : "not listed")),
      make("table", {}, make("caption", {}, "all answers to this question"), make("tbody", {}, ...rows)));
  });
  $("compare").replaceChildren(...sides);
  $("another").hidden = false;
}

function fill() {
  $("model").append(...Object.keys(DATA.models).map((name) => make("option", { value: name }, label(name))));
  const speakers = [["assistant", "the Assistant"], ["someone", "someone"], ...WORLD.characters.map((name) => [name, name])];
  $("header").append(...speakers.map(([value, text]) => make("option", { value }, text)));
  $("domain").append(make("option", { value: "" }, "any domain"), ...WORLD.domains.map((domain, d) => make("option", { value: d }, domain.name)));
  $("instruction").append(make("option", { value: NONE }, "nothing"), ...WORLD.instructions.map((text, i) => make("option", { value: i }, `“${text}”`)));
  questions();
}

/** Offer the questions of the chosen domain. */
function questions() {
  const d = $("domain").value, some = d === "" ? WORLD.domains : [WORLD.domains[d]];
  $("questions").replaceChildren(...some.flatMap((domain) => domain.situations.map((text) => make("option", { value: text }))));
}

/** A question with the chosen instruction, unless it has one of its own. */
function instructed(question) {
  const [d, s, i] = QUESTIONS.get(question);
  return i < NONE ? question : asked(d, s, +$("instruction").value);
}

$("model").onchange = () => { state.model = $("model").value; show(); };
$("header").onchange = () => {
  $("note").textContent = state.turns.length ? "Someone else, so a new dialogue." : "";
  state.header = $("header").value;
  state.turns = [];
  show();
};
$("domain").onchange = questions;
$("new").onclick = () => { state.turns = []; $("note").textContent = ""; show(); };
$("undo").onclick = () => { state.turns.pop(); $("note").textContent = ""; show(); };
$("any").onclick = () => {
  const options = [...$("questions").options];
  ask(instructed(options[Math.floor(Math.random() * options.length)].value));
};
$("ask").onsubmit = (event) => {
  event.preventDefault();
  const text = $("question").value, question = understand(text);
  if (!question) {
    $("note").textContent = text.trim()
      ? "The model knows a few hundred words only, and no such question. Choose one from the list, or press “Random question”."
      : "Type a question, choose one from the list, or press “Random question”.";
    return;
  }
  ask(instructed(question));
  if (question !== text.trim()) $("note").textContent = `Read as: ${question}`;
};
if (DATA.matrix.length) $("another").onclick = compare;
$("theme").onclick = () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
};
fill();
if (DATA.matrix.length) showMatrix();
show();
