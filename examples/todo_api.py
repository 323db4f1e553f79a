"""The asynchronous request-reply pattern: a to-do list whose items take a while to create.

    callboard serve examples/todo_api.py:app --bind 127.0.0.1:8000

    curl -i localhost:8000/api/todos -H 'Content-Type: application/json' -d '{"title": "Write an article", "dueBy": "2027-02-14"}'
                                              # 202, Location: where the job is, Retry-After: when to ask
    curl -i localhost:8000/jobs/<id>          # 200 while it runs, then 303 to /api/todos/<id>
    curl -L localhost:8000/jobs/<id>          # follows the 303
    curl localhost:8000/api/todos

The items are the app's own business and live in its own small SQLite file (``TODOS_DB``, by default ``todos.db``), beside
callboard's file of jobs: both survive a restart, so a finished job never redirects to an item that is gone. A job may
run a second time after a crash, therefore an item has its job's id and writing it twice makes one item.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import msgspec
import trio
from quart import Response, abort
from quart_trio import QuartTrio

from callboard.runtime import JobContext
from callboard.web import Callboard

__all__ = ["NewTodo", "Todo", "app", "board", "create_todo", "one_todo", "todos"]

DATABASE = os.environ.get("TODOS_DB", "todos.db")
WORK_SECONDS = float(os.environ.get("TODOS_WORK_SECONDS", "5"))

app = QuartTrio(__name__)
board = Callboard(app)


class NewTodo(msgspec.Struct, rename="camel"):
    """What the client sends."""

    title: str
    due_by: date | None = None


class Todo(msgspec.Struct, rename="camel"):
    """An item of the list."""

    id: str
    title: str
    due_by: date | None


@board.post(
    "/api/todos",
    name="CreateTodo",
    location=lambda job, todo: f"/api/todos/{todo.id}",
    redirect=True,
)
async def create_todo(job: JobContext, request: NewTodo) -> Todo:
    """Create an item, slowly."""
    await trio.sleep(WORK_SECONDS)
    todo = Todo(id=job.id, title=request.title, due_by=request.due_by)
    await trio.to_thread.run_sync(save, todo)
    return todo


@app.get("/api/todos")
async def todos() -> Response:
    """All items."""
    return as_json(await trio.to_thread.run_sync(load))


@app.get("/api/todos/<todo_id>")
async def one_todo(todo_id: str) -> Response:
    """One item."""
    found = [todo for todo in await trio.to_thread.run_sync(load) if todo.id == todo_id]
    return as_json(found[0]) if found else abort(404)


def as_json(value: object) -> Response:
    return Response(msgspec.json.encode(value), mimetype="application/json")


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(DATABASE)
    try:
        with connection:  # one transaction
            connection.execute("CREATE TABLE IF NOT EXISTS todos (id TEXT PRIMARY KEY, item TEXT NOT NULL)")
            yield connection
    finally:
        connection.close()


def save(todo: Todo) -> None:
    with database() as connection:
        connection.execute("INSERT OR REPLACE INTO todos VALUES (?, ?)", (todo.id, msgspec.json.encode(todo)))


def load() -> list[Todo]:
    with database() as connection:
        return [msgspec.json.decode(item, type=Todo) for (item,) in connection.execute("SELECT item FROM todos")]
