"""The page: widgets, thin handlers over the session, and the web server around them. Nothing here draws, learns or stores.

server.mount(session, settings) -> FastAPI     what app.py serves
layout.page(session, access) -> gr.Blocks      the widgets
contracts.Contracts                            the named endpoints that other programs rely on
board.Board                                    what the rating board and the other tabs send and get
access.Access                                  who may do what
static/                                        the components' HTML, CSS and JavaScript
"""

from loophil.ui.layout import page
from loophil.ui.server import hang_up, mount

__all__ = ["hang_up", "mount", "page"]
