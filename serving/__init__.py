"""What every served process has: the HTTP server and the thread that cleans the database.

The server is waitress. What waitress alone does wrong, and what we do instead, stands where we do
it. waitress documents `create_server`, its arguments and `run`. We also use these names, which it
does not document:

- `server.BaseWSGIServer`, its listener: `accepting`, `channel_class`, `close`, `handle_accept`,
  `readable`, `socket`, `task_dispatcher` (`set_thread_count`, `shutdown`), `trigger.pull_trigger`
- `channel.HTTPChannel`, its connection: `adj`, `connected`, `error_task_class`, `handle_close`,
  `handle_write`, `last_activity`, `parser_class`, `readable`, `received`, `request`, `requests`,
  `socket`, `total_outbufs_len`, `will_close`, `writable`
- `parser.HTTPRequestParser`, its request: `completed`, `error`, `expect_continue`, `first_line`,
  `header_plus`, `headers`, `received`; `utilities.BadRequest`, an error
- `task.ErrorTask`, its answer to a request with an error: `channel`, `close_on_finish`,
  `content_length`, `execute`, `request`, `response_headers`, `set_close_on_finish`, `status`,
  `write`
- that its loop ends once the `map` of its listeners and connections is empty
"""
