"""An HTTP server that speaks OpenAI's images and videos APIs: ``stepvar serve``.

``create_app`` makes an application of its own for each pipeline; nothing is shared between two of them.
"""

from stepvar.serving.server.app import create_app as create_app
from stepvar.serving.server.settings import ServerSettings as ServerSettings
