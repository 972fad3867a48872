"""`expunge init`: a workspace for deletion requests around a trained model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from expunge.api.saved import literals
from expunge.api.trained import RECORD
from expunge.cli import console, inputs
from expunge.core.options import Field, build, option_names, options, to_dict
from expunge.requests.desk import Desk
from expunge.requests.settings import WorkspaceSettings, resolved


@options
class Init(WorkspaceSettings):
    """Settings of `expunge init`: those of the workspace, and what is read once."""

    checkpoint: Path = Field(..., description="weights of the trained model; they are copied into the workspace")
    workspace: Path = Field(Path(), description="folder that becomes the workspace; default: this one")
    recipe_file: Path | None = Field(
        None, description="YAML of the training; default: `recipe`, or result.json beside the checkpoint"
    )


def init(job: Init) -> None:
    """Copy the model in, draw keys, write expunge.yaml."""
    training = inputs.training_of(job.checkpoint)
    recipe = inputs.recipe_of(job.recipe_file, training)
    if job.shards is None:
        job, data = inputs.data_for(job, job.checkpoint)
    else:
        data = inputs.data_of(job, training)
    train = data.train
    if training.get("data", train.content_hash()) != train.content_hash():
        console.say("note: these are not exactly the data that the result.json beside the checkpoint tells of.")
    values = {name: getattr(job, name) for name in option_names(WorkspaceSettings)}
    if job.recipe is None and recipe is not None:
        values["recipe"] = to_dict(recipe)
    if not job.outside:  # what lies beside the checkpoint of a run was made of the same data
        run = job.checkpoint.parent
        values["outside"] = [str(run if (run / RECORD).is_file() else job.checkpoint)]
    settings = build(WorkspaceSettings, {**values, "data_options": dict(job.data_options)})
    settings = resolved(settings, Path.cwd())  # so that they are right from any folder
    settings = dataclasses.replace(settings, model_options=literals(job.model_options))
    with Desk.create(job.workspace, settings, job.checkpoint, train, data.test, say=console.say) as desk:
        active = desk.ledger.active()
        console.out().print(f"model in force: {active.id[:12]}, trained on {active.knows:,} samples")
        if settings.recipe is None:
            console.say(
                "note: how the model was trained is not known, so it cannot be retrained; give --recipe-file in a new "
                "workspace, or add `recipe` to expunge.yaml."
            )
        console.say(
            f"keep a backup of {desk.workspace.keys} in another place: without it no request is recognised and nothing "
            "can be signed. Give public.pem to those who check case files."
        )
