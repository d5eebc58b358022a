import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.util.Base64;

/**
 * Sends the calls on stdin with the JDK's client, which asks for HTTP/2 first, and prints the
 * responses. A call is a line of method, URL, headers ("-" or name=value,...), body and form field
 * ("-": none), separated by spaces; a response is a line of status, protocol and body. Bodies are
 * base64. The method "STREAM" is a POST of a body whose length the client does not know.
 */
class Send {
    private static final String BOUNDARY = "resnet-serve-7d1f";

    public static void main(String[] arguments) throws Exception {
        // By an upgrade, where there is no TLS; it is also the default.
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_2).build();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] parts = line.split(" ");
            byte[] body = Base64.getDecoder().decode(parts[3]);
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(parts[1]));
            if (!parts[2].equals("-")) {
                for (String header : parts[2].split(",")) {
                    String[] pair = header.split("=", 2);
                    request.header(pair[0], pair[1]);
                }
            }
            if (!parts[4].equals("-")) {
                request.header("Content-Type", "multipart/form-data; boundary=" + BOUNDARY);
                body = form(parts[4], body);
            }
            byte[] content = body;
            if (parts[0].equals("STREAM")) {
                request.POST(BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(content)));
            } else {
                request.method(parts[0], BodyPublishers.ofByteArray(content));
            }
            HttpResponse<byte[]> response = client.send(request.build(), BodyHandlers.ofByteArray());
            String text = Base64.getEncoder().encodeToString(response.body());
            System.out.println(response.statusCode() + " " + response.version() + " " + text);
        }
    }

    private static byte[] form(String field, byte[] file) throws Exception {
        ByteArrayOutputStream form = new ByteArrayOutputStream();
        String disposition = "form-data; name=\"" + field + "\"; filename=\"ship.png\"";
        form.write(("--" + BOUNDARY + "\r\nContent-Disposition: " + disposition
            + "\r\nContent-Type: image/png\r\n\r\n").getBytes());
        form.write(file);
        form.write(("\r\n--" + BOUNDARY + "--\r\n").getBytes());
        return form.toByteArray();
    }
}
