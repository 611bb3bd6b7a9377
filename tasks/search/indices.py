"""The templates of the daily indices, and the indices of custody's own.

custody has two indices of its own. `<prefix>-cursors` has a cursor for each log (`tasks.search.cursors`).
`<prefix>-rejected` has the reason for each event that Elasticsearch rejected, for as long as the event would have been
kept (`tasks.roll`).
"""

from elasticsearch import ApiError

from tasks.search import documents
from tasks.search.client import Search


def prepare(search: Search) -> None:
    """Set the templates, and create custody's own indices. Doing it again changes nothing.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    settings = {"index": {"number_of_replicas": search.settings.replicas, **documents.ON_HOT_NODES}}
    own = {
        search.cursors: {"log": {"type": "keyword"}, "sealed_at": {"type": "date"}},
        search.rejected: {
            "log": {"type": "keyword"},
            "offset": {"type": "long"},
            "index": {"type": "keyword"},
            "type": {"type": "keyword"},
            "reason": {"type": "text", "index": False},
            "at": {"type": "date"},
        },
    }
    with search.errors("its templates"):
        search.client.indices.put_index_template(
            name=search.prefix, **documents.template(search.prefix, search.settings.replicas)
        )
        for name, properties in own.items():
            if not search.client.indices.exists(index=name):
                try:
                    search.client.indices.create(
                        index=name, settings=settings, mappings={"dynamic": False, "properties": properties}
                    )
                except ApiError as error:
                    if error.error != "resource_already_exists_exception":
                        raise
