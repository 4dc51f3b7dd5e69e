// What a search did, step by step: five charts that share their x axis.
import { useMemo } from "preact/hooks";
import type { Step } from "../api/client";
import { phaseName } from "../parts/basics";
import { count, decimal, percent } from "../parts/format";
import { LineChart, type Band, type Values } from "./line-chart";

const STAGES = [
  { phase: "stage1", short: "1", colour: "--stage1" },
  { phase: "stage2", short: "2", colour: "--stage2" },
] as const;

export function Curves({ steps }: { steps: readonly Step[] }) {
  const x = useMemo(() => steps.map((step) => step.step), [steps]);
  const bands = useMemo(() => stages(steps), [steps]);
  const column = useMemo(() => columns(steps), [steps]);
  const common = { x, bands };
  const hasSharpness = column.sharpness.some((value) => value !== null);
  const hasSigma = column.sigma.some((value) => value !== null);
  return (
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
        lines={[{ label: "accuracy", colour: "--line2", values: column.valAccuracy, sparse: true }]}
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
      <LineChart
        {...common}
        title="Forward passes"
        format={count}
        lines={[{ label: "passes", colour: "--line6", values: column.passes }]}
      />
    </div>
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
    positive: positive && steps.length > 1,
  };
}

/** Where each stage begins and ends. */
export function stages(steps: readonly Step[]): readonly Band[] {
  const found: Band[] = [];
  for (const { phase, short, colour } of STAGES) {
    const first = steps.find((step) => step.phase === phase);
    const last = steps.findLast((step) => step.phase === phase);
    if (first === undefined || last === undefined) continue;
    const from = found.at(-1)?.to ?? first.step; // no gap between two stages
    found.push({ label: phaseName(phase), short, from, to: last.step, colour });
  }
  return found;
}
