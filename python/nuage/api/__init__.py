"""The administrator's REST API and the live event stream.

Read off `iaas.operations.TABLE`: there is no second list of routes. What flows in: HTTP
requests with a bearer token. What flows out: one JSON answer that names the site that gave it,
or one JSON error that names the field and what would help. This package decides nothing.

- `dispatch`  runs an operation here, or carries it to its home site
- `http`      operations as HTTP routes; images in, events out
- `errors`    the one place where errors become status codes
- `openapi`   the description of it all
- `events`    the ring behind `/v1/events`
- `client`    the same API from the other side; `profile` remembers where and who
"""
