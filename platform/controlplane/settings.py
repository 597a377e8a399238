"""Django settings: everything that differs between two installations comes from the environment."""

from pathlib import Path

import environ

from controlplane.database import django_config
from controlplane.secrets import derive, internal_token, key_pepper, kubeconfig_key

ROOT = Path(__file__).resolve().parents[2]
env = environ.Env()

STATE_DIR = Path(env("MOORAGE_STATE_DIR", default=str(ROOT / ".moorage"))).resolve()
ENGINES_DIR = Path(env("MOORAGE_ENGINES", default=str(ROOT / ".engines"))).resolve()
WEIGHTS_DIR = Path(env("MOORAGE_WEIGHTS", default=str(STATE_DIR / "weights"))).resolve()
REGION = env("MOORAGE_REGION", default="local")
LOCAL_MODEL = env("MOORAGE_LOCAL_MODEL", default="")
ROLE = env("MOORAGE_ROLE", default="web")


def _secret() -> str:
    """MOORAGE_SECRET_KEY, or what the supervisor keeps in the state folder."""
    path = STATE_DIR / "secret"
    value: str = env("MOORAGE_SECRET_KEY", default="")
    if not value and path.exists():
        value = path.read_text().strip()
    if not value:
        raise environ.ImproperlyConfigured(
            f"no secret: set MOORAGE_SECRET_KEY, or run `make up` once (it writes {path})"
        )
    return value


SECRET = _secret()
SECRET_KEY = derive(SECRET, "django")
INTERNAL_TOKEN = env("MOORAGE_INTERNAL_TOKEN", default=internal_token(SECRET))
# Operators' acts that move more than this (in the tenant's currency) wait for a second person.
TWO_PERSON_ABOVE = env("MOORAGE_TWO_PERSON_ABOVE", default="1000")
# Shared with the payment provider; empty means that no notice is believed.
PAYMENT_WEBHOOK_SECRET = env("MOORAGE_PAYMENT_WEBHOOK_SECRET", default="")
KUBECONFIG_KEY = bytes.fromhex(env("MOORAGE_KUBECONFIG_KEY", default=kubeconfig_key(SECRET)))
KEY_PEPPER = bytes.fromhex(env("MOORAGE_KEY_PEPPER", default=key_pepper(SECRET)))

DEBUG = False
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
# A console behind TLS sets MOORAGE_HTTPS=1; the loopback default has no certificate.
HTTPS = env.bool("MOORAGE_HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "controlplane.console.errors.csrf_refused"

DATABASE_URL = env("DATABASE_URL", default="postgres://127.0.0.1:5432/moorage")
# `system` is for the operator's pages alone (controlplane.across); opened when the first of them is asked for.
DATABASES = {
    "default": django_config(DATABASE_URL, ROLE, SECRET),
    "system": django_config(DATABASE_URL, "system", SECRET),
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS_URL = env("REDIS_URL", default="redis://127.0.0.1:6379/0")
REDIS_GATEWAY_URL = env("REDIS_GATEWAY_URL", default=f"{REDIS_URL.rsplit('/', 1)[0]}/1")
WEB_LISTEN = env("WEB_LISTEN", default="127.0.0.1:8000")
GATEWAY_URL = env("GATEWAY_URL", default="http://127.0.0.1:8080")
# Where this process reaches the gateway's public listener, if it is not where customers reach it.
GATEWAY_PRIVATE_URL = env("GATEWAY_PRIVATE_URL", default=GATEWAY_URL)
# Where the meter answers GET /metrics; empty is nowhere.
METER_METRICS_LISTEN = env("METER_METRICS_LISTEN", default="")
GATEWAY_INTERNAL_URLS = env.list("GATEWAY_INTERNAL_URLS", default=["http://127.0.0.1:8081"])

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "csp",
    "rest_framework",
    "drf_spectacular",
    "tenants",
    "inference",
    "billing",
    "controlplane",
    "controlplane.console",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "csp.middleware.CSPMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "controlplane.middleware.TenantMiddleware",
]
ROOT_URLCONF = "controlplane.urls"
ASGI_APPLICATION = "controlplane.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "object-src": ["'none'"],
    }
}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "console:login"
LOGIN_REDIRECT_URL = "console:overview"
LOGOUT_REDIRECT_URL = "console:login"

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文"), ("ar", "العربية")]
LOCALE_PATHS = [Path(__file__).parent / "console" / "locale"]
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "static/"
# Served from where they lie: nothing is collected, so nothing can be stale.
WHITENOISE_USE_FINDERS = True

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["controlplane.api.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["controlplane.api.authentication.HoldsKey"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "controlplane.api.problems.exception_handler",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Moorage provisioning API",
    "DESCRIPTION": "Provision model endpoints, manage keys, read usage and invoices.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env("LOG_LEVEL", default="INFO")},
}
