"""The peer: lists of heartbeats into one table of PostgreSQL, the way such a service is usually written. One insert and one commit a request."""

import os
from datetime import datetime
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from sqlalchemy import create_engine, func, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

engine = create_engine(os.environ["PEER_DATABASE"], pool_size=20, max_overflow=12)


class Base(DeclarativeBase):
    pass


class Beat(Base):
    __tablename__ = "beats"

    id: Mapped[int] = mapped_column(primary_key=True)
    person: Mapped[str] = mapped_column(index=True)
    computer: Mapped[str]
    state: Mapped[str]
    keys: Mapped[int]
    clicks: Mapped[int]
    application: Mapped[str]
    title: Mapped[str]
    received: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class BeatIn(BaseModel):
    person: str = Field(max_length=64)
    computer: str = Field(max_length=255)
    state: str = Field(max_length=32)
    keys: int
    clicks: int
    application: str = Field(max_length=255)
    title: str = Field(max_length=512)


def known(request: Request) -> None:
    if request.headers.get("authorization") != "Bearer peer":
        raise HTTPException(401)


def session():
    with Session(engine) as opened:
        yield opened


service = FastAPI()


@service.post("/beats", dependencies=[Depends(known)])
def take(beats: list[BeatIn], opened: Annotated[Session, Depends(session)]) -> dict[str, int]:
    opened.execute(insert(Beat), [beat.model_dump() for beat in beats])
    opened.commit()
    return {"taken": len(beats)}


@service.get("/ready")
def ready() -> None:
    pass


# Before any worker starts: `python service.py`.
if __name__ == "__main__":
    Base.metadata.create_all(engine)
