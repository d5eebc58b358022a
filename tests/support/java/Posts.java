import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/** Posts each file to a URL, with a length and in chunks, with the client's default settings. */
class Posts {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        System.err.println(client.version());
        for (String name : List.of(arguments).subList(1, arguments.length)) {
            byte[] file = Files.readAllBytes(Path.of(name));
            BodyPublisher whole = BodyPublishers.ofByteArray(file);
            BodyPublisher chunked =
                BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(file));
            for (BodyPublisher body : List.of(whole, chunked)) {
                HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                    .header("Content-Type", "image/png")
                    .POST(body)
                    .build();
                HttpResponse<String> response =
                    client.send(request, HttpResponse.BodyHandlers.ofString());
                System.out.println(response.statusCode() + " " + response.body());
            }
        }
    }
}
