"""Everything about models in one place: adding, finding, walking the tree, writing on them, deleting, verifying."""

from store.ancestry import (
    ROLES,
    EdgeRow,
    NewModel,
    add_model,
    add_model_in,
    ancestors,
    baseline_of,
    children,
    descendants,
    edges,
    parents,
)
from store.annotations import add_tag, aliases, remove_alias, remove_tag, rename_model, set_alias, set_note
from store.deletion import DeletePreview, delete_model, preview_delete
from store.model_rows import ModelRow, get_model, get_models, list_models, resolve_model
from store.verification import Problem, verify

__all__ = [
    "ROLES",
    "DeletePreview",
    "EdgeRow",
    "ModelRow",
    "NewModel",
    "Problem",
    "add_model",
    "add_model_in",
    "add_tag",
    "aliases",
    "ancestors",
    "baseline_of",
    "children",
    "delete_model",
    "descendants",
    "edges",
    "get_model",
    "get_models",
    "list_models",
    "parents",
    "preview_delete",
    "remove_alias",
    "remove_tag",
    "rename_model",
    "resolve_model",
    "set_alias",
    "set_note",
    "verify",
]
