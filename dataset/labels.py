"""A dataset's label names held against the names that a model was trained on: their order is part of what it knows."""

from dataclasses import replace

from dataset.recordings import describe_dataset
from errors import UserError


def match_labels(names, wanted) -> tuple[int, ...] | None:
    """For each of `names` its place among `wanted`; None where they are not the same names, case aside."""
    folded, places = ([str(name).casefold() for name in row] for row in (names, wanted))
    return tuple(places.index(name) for name in folded) if sorted(folded) == sorted(places) else None


def in_order(places) -> bool:
    """Whether labels keep their numbers."""
    return list(places) == list(range(len(places)))


def trained_classes(checkpoint: dict, source) -> tuple[str, ...] | None:
    """The class names of a classifier's checkpoint, in the order of its outputs; None where it does not name them."""
    classes = checkpoint.get("classes")
    if classes is not None and not (isinstance(classes, list | tuple) and all(isinstance(x, str) for x in classes)):
        raise UserError(f"{source}: classes = {classes!r}, expected a list of names")
    return None if classes is None else tuple(classes)


def follow_classes(folder, names, checkpoint: dict, source, must: bool):
    """Bring a dataset's labels into the order of the classes of a classifier's checkpoint, whose head goes on.

    names: of the labels, as `class_names` gives them -> the classes, for each label its place among them, whether the
    head is for them, and a sentence where that needs one. Raises UserError where the dataset has other classes and they
    `must` be these.
    """
    known, in_place = trained_classes(checkpoint, source), tuple(range(len(names)))
    numbered = known and tuple(map(str, range(len(known))))  # the names of those who have none
    unnamed = f"{source} does not name its classes: they are taken in the order of {folder}: {', '.join(names)}"
    if known is None:
        return names, in_place, True, unnamed
    if describe_dataset(folder)["labels"] is None and len(names) <= len(known):
        said = f"{folder} does not name its labels: they are taken in the order of {source}: {', '.join(known)}"
        return known, in_place, True, "" if known == numbered else said
    if known == numbered and len(names) == len(known):
        return names, in_place, True, unnamed
    places = match_labels(names, known)
    said = f"{folder} has labels {list(names)}, but {source} was trained on {list(known)}"
    if places is None and must:
        raise UserError(f"{said}: take the dataset that it was trained on, or name its labels so")
    if places is None:
        return names, in_place, False, f"{said}: its head is left out"
    said = f"{folder} has labels {', '.join(names)}: they are brought into the order of {source}: {', '.join(known)}"
    return known, places, True, "" if in_order(places) else said


def follow_tasks(tasks: dict, rows, source) -> tuple[dict, list[str]]:
    """The tasks {task: dataset folder} with their answers in the order that a checkpoint was trained on, and a sentence
    for each that differs. rows: the checkpoint's `tasks`.

    Raises UserError where a task of the same name has other answers there.
    """
    try:
        trained = {row["name"]: (tuple(row["answers"]), row) for row in rows}
    except (KeyError, TypeError):
        raise UserError(f"{source}: its 'tasks' are not rows with a name and answers: it is damaged") from None
    followed, said = {}, []
    for task, folder in tasks.items():
        answers, row = trained.get(task.name, (task.answers, {}))
        if match_labels(task.answers, answers) is None:
            raise UserError(
                f"task {task.name} has answers {list(task.answers)}, but {source} was trained on {list(answers)}: "
                "give it another name, or the answers of the training"
            )
        if answers != task.answers:
            said.append(f"task {task.name}: answers {list(task.answers)} are asked as trained, {list(answers)}")
            task = _reorder(task, answers, folder)
        others = [name for name in ("question", "lettered") if name in row and row[name] != getattr(task, name)]
        said += [f"task {task.name}: {name} is {getattr(task, name)!r}, trained on {row[name]!r}" for name in others]
        followed[task] = folder
    return followed, said


def _reorder(task, answers, folder):
    """The task with `answers` in place of its own, which are the same in another order or spelling."""
    names = describe_dataset(folder)["labels"]
    if names is None:
        raise UserError(f"task {task.name}: {folder} does not name its labels: list the answers as {list(answers)}")
    places = match_labels(task.answers, answers)
    label_of = {places[place]: name for name, place in zip(names, task.check_labels(names, folder), strict=True)}
    return replace(task, answers=answers, labels=tuple(label_of[place] for place in range(len(answers))))


def explain_labels(tasks: dict) -> list[str]:
    """A sentence for each task {task: dataset folder} whose answers are not plainly the dataset's labels in order."""
    said = []
    for task, folder in tasks.items():
        names = describe_dataset(folder)["labels"]
        if names is None:
            answers = ", ".join(task.answers)
            said.append(f"task {task.name}: {folder} does not name its labels, they are taken in order: {answers}")
            continue
        places = task.check_labels(names, folder)
        plain = in_order(places) and (task.labels or match_labels(names, task.answers))
        if not plain:
            pairs = ", ".join(f"{name} = {task.answers[place]}" for name, place in zip(names, places, strict=True))
            said.append(f"task {task.name}: labels of {folder} are answered so: {pairs}")
    return said
