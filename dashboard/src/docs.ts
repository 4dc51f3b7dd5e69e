// The API's own page: Swagger UI, from its package instead of from a CDN.
import SwaggerUI from "swagger-ui-dist/swagger-ui-es-bundle.js";
import "swagger-ui-dist/swagger-ui.css";

SwaggerUI({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
