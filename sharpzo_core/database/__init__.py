"""The database: engine, tables, pagination and tenant filters."""
