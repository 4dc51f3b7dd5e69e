// What a search did, step by step: charts that share their x axis.
import { useMemo } from "preact/hooks";
import type { JobEvent, Step } from "../api/client";
import { count, decimal, percent } from "../parts/format";
import { AXES, AxisChoice, axisOr, type Axis } from "./axis";
import { LineChart, type Band, type Mark, type Values } from "./line-chart";

const STAGES = [
  { phase: "stage1", short: "1", colour: "--stage1" },
  { phase: "stage2", short: "2", colour: "--stage2" },
] as const;

interface Props {
  steps: readonly Step[];
  /** The phase events name the stages. */
  events: readonly JobEvent[];
  /** The step whose prompt was published; 0 stands for the hand-written prompt. */
  selected: number | null | undefined;
}

export function Curves({ steps, events, selected }: Props) {
  const axis = axisOr("step");
  const x = useMemo(() => steps.map((step) => step[axis]), [steps, axis]);
  const bands = useMemo(() => stages(steps, events, axis), [steps, events, axis]);
  const mark = useMemo(() => markOf(steps, selected, axis), [steps, selected, axis]);
  const column = useMemo(() => columns(steps), [steps]);
  const common = { x, bands, mark, xLabel: AXES[axis] };
  const hasSharpness = column.sharpness.some((value) => value !== null);
  const hasSigma = column.sigma.some((value) => value !== null);
  return (
    <>
      <p class="actions axis">
        <AxisChoice value={axis} />
      </p>
      <div class="charts">
        <LineChart
          {...common}
          title="Loss"
          format={decimal}
          logarithmic={column.positive}
          lines={[
            { label: "training", colour: "--line1", values: column.loss },
            { label: "validation", colour: "--line3", values: column.valLoss, sparse: true },
          ]}
        />
        <LineChart
          {...common}
          title="Validation accuracy"
          format={percent}
          lines={[
            { label: "accuracy", colour: "--line2", values: column.valAccuracy, sparse: true },
          ]}
        />
        {hasSigma && (
          <LineChart
            {...common}
            title="Step size σ of CMA-ES"
            format={decimal}
            lines={[{ label: "σ", colour: "--line5", values: column.sigma }]}
          />
        )}
        {hasSharpness && (
          <LineChart
            {...common}
            title="Sharpness"
            format={decimal}
            lines={[{ label: "sharpness", colour: "--line4", values: column.sharpness }]}
          />
        )}
        {axis === "forward_passes" ? (
          <LineChart
            {...common}
            title="Steps"
            format={count}
            lines={[{ label: "steps", colour: "--line6", values: column.step }]}
          />
        ) : (
          <LineChart
            {...common}
            title="Forward passes"
            format={count}
            lines={[{ label: "passes", colour: "--line6", values: column.passes }]}
          />
        )}
      </div>
    </>
  );
}

function columns(steps: readonly Step[]) {
  const of = (name: keyof Step) => steps.map((step) => step[name]) as Values;
  const [loss, valLoss] = [of("loss"), of("val_loss")];
  const positive = [...loss, ...valLoss].every((value) => value === null || value > 0);
  return {
    loss,
    valLoss,
    valAccuracy: of("val_accuracy"),
    sigma: of("sigma"),
    sharpness: of("sharpness"),
    passes: of("forward_passes"),
    step: of("step"),
    positive: positive && steps.length > 1,
  };
}

/** Where each stage begins and ends, named by the optimiser that it ran. */
function stages(steps: readonly Step[], events: readonly JobEvent[], axis: Axis): readonly Band[] {
  const found: Band[] = [];
  for (const { phase, short, colour } of STAGES) {
    const first = steps.find((step) => step.phase === phase);
    const last = steps.findLast((step) => step.phase === phase);
    if (first === undefined || last === undefined) continue;
    const from = found.at(-1)?.to ?? first[axis]; // no gap between two stages
    found.push({ label: labelOf(phase, events) ?? short, short, from, to: last[axis], colour });
  }
  return found;
}

function labelOf(phase: string, events: readonly JobEvent[]): string | undefined {
  const label = events.find(({ data }) => data["phase"] === phase)?.data["phase_label"];
  return typeof label === "string" ? label : undefined;
}

/** The service thins long searches: the next step that it sent is close enough. */
function markOf(
  steps: readonly Step[],
  selected: number | null | undefined,
  axis: Axis,
): Mark | undefined {
  if (selected == null || selected === 0) return undefined;
  const step = steps.find((known) => known.step >= selected);
  return step && { label: "selected", at: step[axis] };
}
