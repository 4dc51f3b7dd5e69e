// Numbers and times as people read them.
const whole = new Intl.NumberFormat("en");
const stamp = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const DASH = "–";
const DIRECTIONS = /[\u202a-\u202e\u2066-\u2069]/g; // what reverses the text around it

export function percent(fraction: number | null | undefined): string {
  return fraction == null ? DASH : `${(100 * fraction).toFixed(1)} %`;
}

/** Wilson's 95 % interval of an accuracy, in percent; as `prompts/interval.py` of the engine. */
export function interval(accuracy: number, images: number): string {
  const square = 1.959963984540054 ** 2 / images;
  const middle = accuracy + square / 2;
  const half = Math.sqrt(square * (accuracy * (1 - accuracy) + square / 4));
  const [low, high] = [(middle - half) / (1 + square), (middle + half) / (1 + square)];
  return `${(100 * Math.max(0, low)).toFixed(1)}–${(100 * Math.min(1, high)).toFixed(1)}`;
}

/** A difference of two fractions, in percentage points with its sign. */
export function points(from: number | null | undefined, to: number | null | undefined): string {
  if (from == null || to == null) return DASH;
  const difference = 100 * (to - from);
  return `${difference < 0 ? "−" : "+"}${Math.abs(difference).toFixed(1)}`;
}

export function count(value: number | null | undefined): string {
  return value == null ? DASH : whole.format(Math.round(value));
}

export function decimal(value: number | null | undefined): string {
  if (value == null) return DASH;
  return Math.abs(value) < 0.001 && value !== 0
    ? value.toExponential(2)
    : String(Number(value.toPrecision(4)));
}

export function bytes(value: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = value < 1 ? 0 : Math.min(Math.floor(Math.log10(value) / 3), units.length - 1);
  return `${(value / 1000 ** power).toFixed(power === 0 ? 0 : 1)} ${units[power]}`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds == null) return DASH;
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export function moment(time: string | null): string {
  return time === null ? DASH : stamp.format(new Date(time));
}

/** How long ago, roughly; show `moment` as its title. */
export function ago(time: string, now: number = Date.now()): string {
  const seconds = (now - Date.parse(time)) / 1000;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

/** Text of a user where no element can isolate it, such as in an <option>. */
export function isolated(text: string, longest = 60): string {
  const characters = [...text.replace(DIRECTIONS, "")];
  const cut = characters.length > longest ? [...characters.slice(0, longest), "…"] : characters;
  return `\u2068${cut.join("")}\u2069`;
}
