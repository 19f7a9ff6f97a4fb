"""Health check of the containers, in Python because the images have no curl: python -I health.py PORT

Exit with 0 when http://127.0.0.1:PORT/health answers 200. It uses http.client, because urllib would use a proxy from
the environment.
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
