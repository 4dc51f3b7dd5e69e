// The x axis of curves: the reader chooses, and this device remembers.
import { signal } from "@preact/signals";
import { Choice } from "../parts/forms/choice";

const NAME = "sharpzo.axis";
export const AXES = { forward_passes: "forward passes", step: "step", seconds: "seconds" } as const;
export type Axis = keyof typeof AXES;

const stored = localStorage.getItem(NAME);
const chosen = signal<Axis | null>(stored !== null && stored in AXES ? (stored as Axis) : null);

/** The axis that the reader chose, or `otherwise`. */
export function axisOr(otherwise: Axis): Axis {
  return chosen.value ?? otherwise;
}

export function AxisChoice({ value }: { value: Axis }) {
  const choose = (axis: Axis) => {
    localStorage.setItem(NAME, axis);
    chosen.value = axis;
  };
  return <Choice label="Over" value={value} options={AXES} onChange={choose} />;
}
