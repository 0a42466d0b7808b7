"""The command `nst`. Each command imports what it needs when it runs, so that `nst --help` answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flows import (
    bulk_command,
    cluster_commands,
    collection_commands,
    copy_database_command,
    explore_commands,
    gallery_commands,
    notify_command,
    run_commands,
    service_commands,
    sweep_command,
)
from flows.options import (
    Device,
    Home,
    JobReference,
    Json,
    existing_store,
    print_json,
    settings_of,
    store_of,
)

EXIT_CODES = """Exit codes: 0 done; 1 a job failed, or nst doctor found something to mend; 2 the command or its input
is wrong; 3 this machine cannot do it (weights, device, database, disk, Prefect); 130 interrupted."""

app = typer.Typer(
    name="nst",
    help=f"Neural style transfer as a batch service.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

run_commands.register(app)
service_commands.register(app)
cluster_commands.register(app)
copy_database_command.register(app)
gallery_commands.register(app)
notify_command.register(app)
collection_commands.register(app)
bulk_command.register(app)
sweep_command.register(app)
explore_commands.register(app)


@app.command()
def presets(as_json: Json = False) -> None:
    """List the built-in presets with their sources."""
    from flows.terminal import print_presets
    from nst_engine.presets import PRESETS

    if as_json:
        print_json(
            [
                {"name": preset.name, "source": preset.source, "config": preset.config.model_dump()}
                for preset in PRESETS.values()
            ]
        )
    else:
        print_presets(PRESETS.values())


@app.command()
def jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many at the most.")] = 20,
    state: Annotated[str | None, typer.Option(help="Only those in this state, such as completed or failed.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the jobs, newest first."""
    from flows.errors import SettingsError
    from flows.report import job_document
    from flows.terminal import local_time, out, table
    from nst_engine.config import did_you_mean
    from storage.models import JobState

    states = [known.value for known in JobState]
    if state is not None and state not in states:
        raise SettingsError(f"--state {state}: there is no such state{did_you_mean(state, states)}")
    store = store_of(settings_of(home))
    found = store.recent(limit=limit, state=JobState(state) if state else None) if store else []
    losses = store.final_losses([job.id for job in found]) if store else {}
    if as_json:
        print_json([job_document(job) for job in found])
        return
    rows = [
        [
            job.id,
            job.name,
            job.state.value,
            job.preset,
            local_time(job.created_at),
            f"{losses[job.id].total:.6g}" if job.id in losses else "-",
            job.error or job.result_folder or "-",
        ]
        for job in found
    ]
    if rows:
        out.print(table(None, ["job", "name", "state", "preset", "created", "loss", "result"], rows))
    else:
        out.print("No jobs yet; `nst run CONTENT STYLE` makes one.")


@app.command()
def show(job: JobReference, home: Home = None, as_json: Json = False) -> None:
    """Show all that is known of a job, with its loss curve."""
    from flows.report import job_document, loss_rows
    from flows.terminal import print_job

    store = existing_store(settings_of(home), job)
    found = store.find(job)
    losses = store.losses(found.id)
    document = job_document(found)
    if as_json:
        print_json(document | {"losses": loss_rows(losses)})
    else:
        print_job(found, losses, document)


@app.command()
def losses(
    job: JobReference,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the total loss.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List a job's losses, one line an iteration; seconds count from the start of the optimisation."""
    from flows.errors import SettingsError
    from flows.report import loss_rows, write_csv
    from flows.terminal import loss_curve, out, table

    if as_csv + plot + as_json > 1:
        raise SettingsError("Give one of --csv, --plot and --json.")
    store = existing_store(settings_of(home), job)
    points = store.losses(store.find(job).id)
    if as_csv:
        write_csv(points, sys.stdout)
    elif as_json:
        print_json(loss_rows(points))
    elif not points:
        out.print("This job has no losses yet.")
    elif plot:
        out.print(loss_curve([point.total for point in points]), markup=False)
    else:
        columns = ["iteration", "total", "content", "style", "tv", "seconds"]
        rows = [[f"{row[column]:.6g}" for column in columns] for row in loss_rows(points)]
        out.print(table(None, columns, rows))


@app.command()
def weights(
    layers: Annotated[bool, typer.Option("--layers", help="List the network's layers.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the official file and verify it.")] = False,
    as_json: Json = False,
) -> None:
    """Show which VGG19 weights a job would use, and verify them."""
    from flows.errors import SettingsError
    from flows.network import layer_rows, weights_document
    from flows.terminal import out, print_mapping, table
    from nst_engine.weights import download

    if layers and fetch:
        raise SettingsError("Give one of --layers and --fetch.")
    if layers:
        rows = layer_rows()
        if as_json:
            print_json(rows)
            return
        out.print(table(None, list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
        out.print(f"\nTotal parameters: {sum(row['parameters'] for row in rows):,}")
        return
    if fetch:
        download()
    document = weights_document()
    if as_json:
        print_json(document)
    else:
        print_mapping({key: value for key, value in document.items() if value is not None})
    if not document["verified"]:
        raise typer.Exit(3)


@app.command()
def doctor(device: Device = None, home: Home = None, as_json: Json = False) -> None:
    """Check this machine, the home and the service that runs there, and say how to mend what is wrong."""
    from flows.doctor.examination import examine
    from flows.terminal import out

    findings = list(examine(settings_of(home, device=device)))
    sick = [finding for finding in findings if not finding.healthy]
    if as_json:
        print_json([finding.document() for finding in findings])
    else:
        for finding in findings:
            if finding.healthy:
                out.print(f"ok   {finding.check:<9} {finding.finding}", markup=False)
        # Last, where the eye is.
        for finding in sick:
            out.print(f"MEND {finding.check:<9} {finding.finding}", markup=False)
            out.print(f"               -> {finding.remedy}", markup=False)
    if sick:
        raise typer.Exit(1)


def main() -> None:
    """Run the command; a failure is one sentence on standard error and an exit code of EXIT_CODES."""
    from flows.exits import exit_code_of

    try:
        app()
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        sys.stderr.write(f"nst: {error}\n")
        sys.exit(code)


if __name__ == "__main__":
    main()
