// Per-class results in one form, from the reports of tuning jobs (`sharpzo-report/1`) and of
// evaluations (`sharpzo-evaluation/1`).
import { ApiError, fetchRaw } from "../api/client";

export interface ClassFigures {
  name: string;
  images: number;
  before: number | null;
  after: number | null;
}

/** Number of images of class `true` that were classified as `predicted`. */
export type Cell = readonly [true_: number, predicted: number, images: number];

export interface Bin {
  low: number;
  images: number;
  confidence: number | null;
  accuracy: number | null;
}

export interface Reliability {
  ece: number;
  bins: Bin[];
}

export interface Report {
  split: string;
  images: number;
  classes: ClassFigures[];
  confusion: Cell[];
  calibration: Record<"tuned" | "calibrated" | "zero_shot", Reliability | null> | null;
}

interface TuningReport {
  format: "sharpzo-report/1";
  headline: { split: string; images: number };
  classes: { name: string; images: number; zero_shot: number | null; tuned: number | null }[];
  confusion: Cell[];
}

interface EvaluationReport {
  format: "sharpzo-evaluation/1";
  split: string;
  images: number;
  classes: {
    name: string;
    images: number;
    accuracy: number | null;
    zero_shot_accuracy: number | null;
  }[];
  confusion: Cell[];
  calibration: Report["calibration"];
}

/** The report of a job; null if there is none, or if its format is unknown here. */
export async function loadReport(jobId: string, signal: AbortSignal): Promise<Report | null> {
  const headers = { Accept: "application/json" };
  try {
    const answer = await fetchRaw(`/v1/jobs/${jobId}/report`, { headers, signal });
    return read((await answer.json()) as TuningReport | EvaluationReport);
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return null;
    throw error;
  }
}

function read(report: TuningReport | EvaluationReport): Report | null {
  const { confusion } = report;
  if (report.format === "sharpzo-report/1") {
    const classes = report.classes.map(({ name, images, zero_shot: before, tuned: after }) => {
      return { name, images, before, after };
    });
    const { split, images } = report.headline;
    return { split, images, classes, confusion, calibration: null };
  }
  if (report.format === "sharpzo-evaluation/1") {
    const classes = report.classes.map(({ name, images, accuracy, zero_shot_accuracy: before }) => {
      return { name, images, before: before ?? null, after: accuracy };
    });
    const { split, images, calibration } = report;
    return { split, images, classes, confusion, calibration };
  }
  return null;
}
