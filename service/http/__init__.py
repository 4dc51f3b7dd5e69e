"""HTTP below the routes: connections, bodies, JSON, multipart, problem documents."""
