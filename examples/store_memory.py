"""An agent's memory: facts by user, found by their words, changed only if nobody was faster, with a history."""

import tempfile

from tr_mmap.store import Store, VersionConflict

FACTS = {
    "ada": ["Ada takes her tea without milk.", "Ada's train leaves at seven in the morning.", "Ada plays the oboe."],
    "ben": ["Ben takes milk in his tea.", "Ben's train leaves at nine.", "Ben is afraid of geese."],
}


def main() -> None:
    # A memory that is to stay has no path, or one of its own: Store("agent").
    with tempfile.TemporaryDirectory() as folder, Store("agent", folder, indexed=("kind",)) as store:
        for user, facts in FACTS.items():
            store.add_many({"content": fact, "user_id": user, "metadata": {"kind": "fact"}} for fact in facts)

        for user in FACTS:
            hits = store.search("when does the train leave?", user_id=user, limit=1)
            print(f"{user}: {hits[0].record.content}")

        # Two tasks have read the same version; the second one to write is told so, and reads again.
        record = store.search("tea", user_id="ada")[0].record
        store.update(record.id, content="Ada takes her tea with oat milk.", if_version=record.version)
        try:
            store.update(record.id, content="Ada takes no tea at all.", if_version=record.version)
        except VersionConflict as conflict:
            print(f"conflict: version {conflict.found} is there, not {conflict.expected}")
        for event in store.history(record.id):
            print(f"  {event.event} {event.version}: {event.content}")

        # What is true for a while says when it ends; what is hardly worth a line is the first to go.
        store.add("Ada is in Lyon this week.", user_id="ada", ttl_s=7 * 24 * 3600, importance=0.2)
        newest = store.get_all(user_id="ada", limit=1)[0]
        print(f"gone in {(newest.expires_at - newest.created_at) / 86400:.0f} days: {newest.content}")

        ben = store.clone(scope="ben")  # for code that is to see nothing but Ben's
        print("Ben's handle sees:", len(ben.get_all()), "records, and of Ada's:", ben.get(record.id))
        print("forgotten:", store.clear(user_id="ada"), "of Ada's; left:", store.stats().records)
        ben.close()


if __name__ == "__main__":
    main()
