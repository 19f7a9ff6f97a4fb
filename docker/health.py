"""The containers' health check, in Python because the images carry no curl: python -I health.py PORT

Exits with 0 when http://127.0.0.1:PORT/health answers 200. http.client, because urllib would go through a proxy
that the environment names.
"""

import http.client
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=4)
try:
    connection.request("GET", "/health")
    status = connection.getresponse().status
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"no answer: {error}")
finally:
    connection.close()
sys.exit(None if status == 200 else f"status {status}")
