"""Images → a gallery that can be searched. Runs without torch; knows nothing of HTTP or training.

from index import Gallery, build, list_photos

with Gallery.create("my-cars", "model/") as gallery:
    build(gallery, list_photos(Path("photos/")))
    query = gallery.model.embed(gallery.model.prepare(Path("photo.jpg"))[None])
    ids, scores = gallery.search(query, k=10)
"""

from index.errors import DsclError
from index.gallery import Evaluation, Gallery
from index.ingest import BuildReport, build
from index.items import Item, NewItem
from index.metrics import RetrievalMetrics, evaluate
from index.model import Model, ModelCard
from index.photos import Photo, list_photos

__all__ = [
    "BuildReport",
    "DsclError",
    "Evaluation",
    "Gallery",
    "Item",
    "Model",
    "ModelCard",
    "NewItem",
    "Photo",
    "RetrievalMetrics",
    "build",
    "evaluate",
    "list_photos",
]
